/** docs/dependencies.md names every dependency, and none that is not there. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const root = join(__dirname, '..');
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Record<
  'dependencies' | 'peerDependencies' | 'devDependencies',
  Record<string, string>
>;
const text = readFileSync(join(root, 'docs/dependencies.md'), 'utf8');
const [atRunTime, forDevelopment] = text.split('## For development') as [string, string];
const namesIn = (part: string): string[] =>
  [...part.matchAll(/`([^`\s]+)`/g)].map(([, name]) => name!).filter((name) => !/\.(json|ts)$/.test(name));

test('those at run time, with their licences', () => {
  const { dependencies, peerDependencies } = manifest;
  expect(namesIn(atRunTime).sort()).toEqual(
    [...Object.keys(dependencies), ...Object.keys(peerDependencies)].sort(),
  );
  for (const name of Object.keys(dependencies)) {
    const path = join(root, 'node_modules', name, 'package.json');
    const { license } = JSON.parse(readFileSync(path, 'utf8')) as { license: string };
    expect(text).toMatch(new RegExp(`\`${name}\` +\\| ${license.replace('.', '\\.')} +\\|`));
  }
});

test('those for development', () => {
  const { devDependencies, peerDependencies } = manifest;
  const expected = Object.keys(devDependencies).filter(
    (name) => !name.startsWith('@types/') && !(name in peerDependencies),
  );
  expect(
    namesIn(forDevelopment)
      .filter((name) => name !== '@types/*')
      .sort(),
  ).toEqual(expected.sort());
});
