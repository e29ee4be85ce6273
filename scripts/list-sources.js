// Lists a folder's .cc files for binding.gyp, which has no globs: kernels (compiled once an instruction set) or the rest.
'use strict';

const { readdirSync } = require('node:fs');

const [folder, which] = process.argv.slice(2);
const wanted = (name) => name.endsWith('.cc') && name.endsWith('_kernel.cc') === (which === 'kernels');
console.log(
  readdirSync(folder)
    .filter(wanted)
    .sort()
    .map((name) => `${folder}/${name}`)
    .join('\n'),
);
