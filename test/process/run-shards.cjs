// Computes shards of a run: node run-shards.cjs OPTIONS-AS-JSON FIRST STEP. Says "ready" on stdout when it begins.
const { open } = require('../../dist/index.js');
const { planRun, runShard } = require('../../dist/pipeline/run.js');

async function main([options, first, step]) {
  const run = await planRun(JSON.parse(options));
  const device = await open({ device: 'cpu', threads: 1 });
  process.stdout.write('ready\n');
  for (let shard = Number(first); shard < run.shards; shard += Number(step))
    await runShard(run, shard, { device });
  device.close();
}

void main(process.argv.slice(2));
