# The CPU backend by node-gyp alone, for machines with no CMake. The same sources and options as CMakeLists.txt.
{
  'variables': {
    'core_sources': ['<!@(node scripts/list-sources.js native/core)'],
    'cpu_sources': ['<!@(node scripts/list-sources.js native/cpu)'],
    'kernel_sources': ['<!@(node scripts/list-sources.js native/cpu kernels)'],
    'addon_sources': ['<!@(node scripts/list-sources.js native/addon)'],
    'conditions': [
      ['target_arch=="x64"', {
        'kernel_targets': ['kernels_x86_64_v2', 'kernels_x86_64_v3', 'kernels_x86_64_v4'],
        'isa_defines': ['AB_ISAS_X86_64'],
      }, 'target_arch=="arm64"', {
        'kernel_targets': ['kernels_plain'], 'plain_isa': 'arm64', 'isa_defines': [],
      }, {
        'kernel_targets': ['kernels_plain'], 'plain_isa': 'generic', 'isa_defines': [],
      }],
    ],
  },
  'target_defaults': {
    'include_dirs': ['native'],
    'defines': ['<@(isa_defines)'],
    'cflags': ['-fvisibility=hidden', '-Wall', '-Wextra'],
    'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20'],
    'cflags_cc': ['-std=c++17', '-fexceptions', '-fvisibility-inlines-hidden'],
    'ldflags': ['-Wl,--exclude-libs,ALL', '-Wl,--version-script=<(module_root_dir)/cmake/exports.map'],
    'xcode_settings': {
      'GCC_ENABLE_CPP_EXCEPTIONS': 'YES',
      'CLANG_CXX_LANGUAGE_STANDARD': 'c++17',
      'GCC_SYMBOLS_PRIVATE_EXTERN': 'YES',
      'MACOSX_DEPLOYMENT_TARGET': '11.0',
    },
  },
  'conditions': [
    ['target_arch=="x64"', {
      'targets': [
        {
          'target_name': 'kernels_x86_64_v2', 'type': 'static_library', 'sources': ['<@(kernel_sources)'],
          'defines': ['AB_ISA_NAME=x86_64_v2'],
          'cflags_cc': ['-march=x86-64-v2', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=fast', '-Wno-maybe-uninitialized', '-Wno-uninitialized'],
        },
        {
          'target_name': 'kernels_x86_64_v3', 'type': 'static_library', 'sources': ['<@(kernel_sources)'],
          'defines': ['AB_ISA_NAME=x86_64_v3'],
          'cflags_cc': ['-march=x86-64-v3', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=fast', '-Wno-maybe-uninitialized', '-Wno-uninitialized'],
        },
        {
          'target_name': 'kernels_x86_64_v4', 'type': 'static_library', 'sources': ['<@(kernel_sources)'],
          'defines': ['AB_ISA_NAME=x86_64_v4'],
          'cflags_cc': ['-march=x86-64-v4', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=fast', '-Wno-maybe-uninitialized', '-Wno-uninitialized'],
        },
      ],
    }, {
      'targets': [
        {
          'target_name': 'kernels_plain', 'type': 'static_library', 'sources': ['<@(kernel_sources)'],
          'defines': ['AB_ISA_NAME=<(plain_isa)'],
          'cflags_cc': ['-fno-math-errno', '-fno-trapping-math', '-ffp-contract=fast'],
        },
      ],
    }],
  ],
  'targets': [
    {
      'target_name': 'attention_bias',
      'sources': ['<@(addon_sources)', '<@(core_sources)', '<@(cpu_sources)', 'native/cuda/self_test.cc', 'native/cuda/cuda_absent.cc'],
      'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")'],
      'defines': ['NAPI_VERSION=8', 'NAPI_CPP_EXCEPTIONS', 'NODE_ADDON_API_CPP_EXCEPTIONS_ALL'],
      'dependencies': ['<@(kernel_targets)'],
      'libraries': ['-lpthread'],
    },
  ],
}
