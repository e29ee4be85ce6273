// In CI, where other work may hold the cores, a test that fails is tried once more, with its first failure printed: what
// waits for processes and times can miss once. What is wrong fails again.
if (process.env.CI) jest.retryTimes(1, { logErrorsBeforeRetry: true });
