import type { Config } from 'jest';

const config: Config = {
  testEnvironment: 'node',
  testTimeout: 60_000,
  // Most tests wait for processes or kernels: as many at once as there are cores, jest's own default being one fewer.
  maxWorkers: '100%',
  roots: ['<rootDir>/test'],
  setupFilesAfterEnv: ['<rootDir>/test/setup.ts'],
  testMatch: ['**/*.test.ts'],
  // Sources import each other by the names that they have once compiled.
  moduleNameMapper: { '^(\\.{1,2}/.*)\\.js$': '$1' },
  transform: { '^.+\\.ts$': ['ts-jest', { tsconfig: 'tsconfig.json' }] },
};

export default config;
