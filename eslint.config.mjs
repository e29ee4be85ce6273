import { defineConfig, globalIgnores } from 'eslint/config';
import tseslint from 'typescript-eslint';

export default defineConfig(
  globalIgnores(['dist/', 'build/', 'build-*/', 'out/', 'coverage/', 'test/vectors/']),
  {
    // No text is run as code, and no command goes through a shell: arguments stay arguments.
    files: ['**/*.{ts,js,mjs,cjs}'],
    rules: {
      'no-eval': 'error',
      'no-implied-eval': 'error',
      'no-new-func': 'error',
      'no-restricted-syntax': [
        'error',
        {
          selector: "Property[key.name='shell']",
          message: 'Give the program and its arguments, without a shell.',
        },
        {
          selector: 'CallExpression[callee.name=/^exec(Sync)?$/]',
          message: 'Use spawn or execFile: exec goes through a shell.',
        },
      ],
    },
  },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked, tseslint.configs.stylisticTypeChecked],
    languageOptions: { parserOptions: { projectService: true } },
    rules: {
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      // Typed arrays are indexed in loops whose bounds are plain to see.
      '@typescript-eslint/no-non-null-assertion': 'off',
    },
  },
);
