namespace attention_bias::fuzz{} 
