// node-addon-api as this addon uses it: include this, not <napi.h>.
#pragma once

// An exception that can't be thrown because its worker_thread is being terminated is dropped; without this
// node-addon-api ends the process.
#define NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS
#include <napi.h>
