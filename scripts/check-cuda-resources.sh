#!/usr/bin/env bash
# Reads ptxas' report from the log of a build with ATTENTION_BIAS_CUDA_REPORT=ON: fails where a kernel on any architecture
# takes more registers than the budget at its head, or spills any to memory. The attention kernels fill their budget: they may
# spill 8 bytes, two registers, and those of head dims 192 and 256, for which all the registers that there are do not
# suffice, 64.
#
#   ATTENTION_BIAS_CUDA_REPORT=ON node scripts/install.js 2>&1 | tee build.log; scripts/check-cuda-resources.sh build.log
set -euo pipefail
awk '
  /Compiling entry function/ { name = $0; sub(/.*entry function ./, "", name); sub(/. for .*/, "", name); arch = $NF; ++kernels }
  /Compiling entry function.*attention_kernel/ { ++attention }
  /Compiling entry function.*gather_kernel/ { ++gather }
  /Compiling entry function.*linear_kernel/ { ++linear }
  /Compiling entry function.*gradient_kernel/ { ++gradient }
  /bytes spill stores/ {
    match($0, /[0-9]+ bytes spill stores/); spilled = substr($0, RSTART) + 0
    allowed = name ~ /attention_kernelILi(192|256)E/ ? 64 : name ~ /attention_kernel/ ? 8 : 0
    if (spilled > allowed) { print "spills", spilled, "bytes:", name, arch; ++bad }
  }
  /Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/); used = substr($0, RSTART + 5, RLENGTH - 5) + 0; if (used > most) most = used
    budget = name ~ /attention_kernelILi32ELNS_9PrecisionE2E/ ? 168 : name ~ /attention_kernel/ ? 255 : 128
    if (used > budget) { print "takes", used, "registers of", budget ":", name, arch; ++bad }
  }
  END {
    printf "%d kernels, %d of them attention, %d gather, %d linear and %d gradient; at most %d registers; %d over budget\n", kernels, attention, gather, linear, gradient, most, bad
    exit bad > 0 || attention == 0 || gather == 0 || linear == 0 || gradient == 0
  }' "$1"
