// A CUDA driver without a GPU: device memory is the host's, and kernels are the same sources compiled for the host.
//
// As on a GPU, what is enqueued does not run at once: here, not before something waits for it. So memory that is
// changed, read or freed too early shows. What a module is loaded from is the bytes of a library that host.py made.
// Entry points that are not here answer CUDA_ERROR_NOT_SUPPORTED; driver.py adds them.
//
// The environment sets, and is read at every use: EMULATED_DEVICES (1), EMULATED_MEMORY in bytes (1 GiB), and
// EMULATED_FAULT="n:code": the n-th kernel that runs in a context fails with that CUresult, and the context with it.
#include "driver_state.h"

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

using namespace stand_in;

namespace {

struct Dimensions {
    unsigned x, y, z;
};

const std::map<int, const char *> TEXTS = {
    {CUDA_SUCCESS, "no error"},
    {CUDA_ERROR_INVALID_VALUE, "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "invalid device context"},
    {CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered"},
    {CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "named symbol not found"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
    {CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"},
    {CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"},
    {CUDA_ERROR_NOT_SUPPORTED, "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
};

// Copies between device and host; a pageable host's memory is read or written within the call.
CUresult copy_host(CUdeviceptr to, CUdeviceptr origin, size_t size, CUstream handle, bool from_device) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    char *host = reinterpret_cast<char *>(from_device ? to : origin);
    if (!within(context->memory, from_device ? origin : to, size)) return CUDA_ERROR_INVALID_VALUE;
    if (!within(context->pinned, host, size) && captured) return spoil(*captured);
    status = enqueue(handle, [=] {
        std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(origin), size);
        return CUDA_SUCCESS;
    });
    if (status || within(context->pinned, host, size)) return status;
    return cuStreamSynchronize(handle);
}

CUresult run(Context &context, const Function &function, Dimensions grid, Dimensions block, const void *packed) {
    int number = ++context.kernels, at = 0, code = 0;
    const char *fault = std::getenv("EMULATED_FAULT");
    if (fault && std::sscanf(fault, "%d:%d", &at, &code) == 2 && at == number) return static_cast<CUresult>(code);
    char text[256];
    if (!function.launch(function.name.c_str(), &grid.x, &block.x, packed, text, sizeof text)) return CUDA_SUCCESS;
    std::fprintf(stderr, "kernel %s: %s\n", function.name.c_str(), text);
    return CUDA_ERROR_LAUNCH_FAILED;
}

// A library's bytes end with its section headers.
size_t library_size(const void *image) {
    Elf64_Ehdr header;
    std::memcpy(&header, image, sizeof header);
    return header.e_shoff + size_t{header.e_shentsize} * header.e_shnum;
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned) {
    Lock lock(mutex);
    if (!device_count()) return CUDA_ERROR_NO_DEVICE;
    for (int i = 0; i < MAX_DEVICES; i++) contexts[i].device = i;
    initialised = true;
    return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult code, const char **text) {
    auto known = TEXTS.find(code);
    *text = known == TEXTS.end() ? "another error" : known->second;
    return CUDA_SUCCESS;
}

// Devices and contexts

CUresult cuDeviceGetCount(int *count) { return *count = device_count(), CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    if (ordinal < 0 || ordinal >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    return *device = ordinal, CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *name, int room, CUdevice) {
    return std::snprintf(name, static_cast<size_t>(room), "host emulation"), CUDA_SUCCESS;
}
CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice) { return *major = 9, *minor = 0, CUDA_SUCCESS; }
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice) { return *bytes = total_memory(), CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
    if (attribute != CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) return CUDA_ERROR_NOT_SUPPORTED;
    return *value = 4, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *handle, CUdevice device) {
    Lock lock(mutex);
    contexts[device].users++;
    return *handle = reinterpret_cast<CUcontext>(&contexts[device]), CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    Lock lock(mutex);
    if (!contexts[device].users) return CUDA_ERROR_INVALID_CONTEXT;
    if (!--contexts[device].users) destroy(contexts[device]);
    return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext handle) {
    return stack.push_back(reinterpret_cast<Context *>(handle)), CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext *handle) {
    if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (handle) *handle = reinterpret_cast<CUcontext>(stack.back());
    return stack.pop_back(), CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext handle) {
    if (!stack.empty()) stack.pop_back();
    return handle ? cuCtxPushCurrent(handle) : CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *handle) {
    return *handle = stack.empty() ? nullptr : reinterpret_cast<CUcontext>(stack.back()), CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice *device) {
    CUresult status;
    Context *context = current(status);
    if (context) *device = context->device;
    return status;
}
CUresult cuCtxSynchronize() {
    Lock lock(mutex);
    CUresult status;
    Context *context = current_outside_capture(status);
    return context ? drain_all(*context) : status;
}

// Memory

CUresult cuMemGetInfo(size_t *available, size_t *total) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    *total = *available = total_memory();
    for (auto &[address, allocation] : context->memory) *available -= allocation.size;
    return CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr *address, size_t size) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current_outside_capture(status);
    if (!context) return status;
    size_t available, total;
    cuMemGetInfo(&available, &total);
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    if (size > available) return CUDA_ERROR_OUT_OF_MEMORY;
    auto [start, allocation] = allocate(size);
    *address = reinterpret_cast<CUdeviceptr>(start);
    context->memory.emplace(*address, std::move(allocation));
    return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr address) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current_outside_capture(status);
    if (!context) return status;
    auto found = context->memory.find(address);
    if (found == context->memory.end()) return CUDA_ERROR_INVALID_VALUE;
    drain_all(*context);
    check_guards(reinterpret_cast<char *>(address), found->second);
    context->memory.erase(found);
    return context->failure;
}
CUresult cuMemHostAlloc(void **address, size_t size, unsigned) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current_outside_capture(status);
    if (!context) return status;
    auto [start, allocation] = allocate(size);
    *address = start;
    context->pinned.emplace(start, std::move(allocation));
    return CUDA_SUCCESS;
}
CUresult cuMemFreeHost(void *address) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current_outside_capture(status);
    if (!context) return status;
    drain_all(*context);
    return context->pinned.erase(static_cast<char *>(address)) ? context->failure : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *origin, size_t size, CUstream stream) {
    return copy_host(to, reinterpret_cast<CUdeviceptr>(origin), size, stream, false);
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr origin, size_t size, CUstream stream) {
    return copy_host(reinterpret_cast<CUdeviceptr>(to), origin, size, stream, true);
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr origin, size_t size, CUstream stream) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    if (!within(context->memory, to, size) || !within(context->memory, origin, size)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(stream, [=] {
        std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(origin), size);
        return CUDA_SUCCESS;
    });
}
CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t size, CUstream stream) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    if (!within(context->memory, address, size)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(stream, [=] {
        std::memset(reinterpret_cast<void *>(address), value, size);
        return CUDA_SUCCESS;
    });
}

// Streams and graphs

CUresult cuStreamCreate(CUstream *handle, unsigned) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    Stream *stream = new Stream;
    context->streams.insert(stream);
    return *handle = reinterpret_cast<CUstream>(stream), CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream handle) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    Stream *stream = stream_of(*context, handle);
    if (!stream || stream == &context->legacy) return CUDA_ERROR_INVALID_HANDLE;
    drain(*context, *stream);
    context->streams.erase(stream);
    delete stream;
    return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream handle) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    Stream *stream = stream_of(*context, handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return spoil(*stream);
    return drain(*context, *stream);
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *given) { return std::swap(*given, mode), CUDA_SUCCESS; }
CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode how) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    Stream *stream = stream_of(*context, handle);
    if (!stream || how != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) return CUDA_ERROR_NOT_SUPPORTED;
    if (stream->capture || stream == &context->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    stream->capture = std::make_unique<Graph>();
    captured = stream;
    return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    Stream *stream = stream_of(*context, handle);
    if (!stream || !stream->capture) return CUDA_ERROR_INVALID_VALUE;
    if (stream != captured) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    std::unique_ptr<Graph> recorded = std::move(stream->capture);
    bool invalidated = stream->invalidated;
    stream->invalidated = false;
    captured = nullptr;
    *graph = invalidated ? nullptr : reinterpret_cast<CUgraph>(recorded.release());
    return invalidated ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    auto nodes = std::make_shared<Graph>(*reinterpret_cast<Graph *>(graph));
    *executable = reinterpret_cast<CUgraphExec>(new Executable{context, nodes});
    context->executables++;
    return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) { return delete reinterpret_cast<Graph *>(graph), CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec handle) {
    Lock lock(mutex);
    Executable *executable = reinterpret_cast<Executable *>(handle);
    executable->context->executables--;
    return delete executable, CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
    Lock lock(mutex);
    return enqueue(stream, [nodes = reinterpret_cast<Executable *>(graph)->graph] {
        for (Work &work : *nodes)
            if (CUresult failure = work()) return failure;
        return CUDA_SUCCESS;
    });
}
CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data) {
    Lock lock(mutex);
    return enqueue(stream, [=] { return function(data), CUDA_SUCCESS; });
}

// Kernels

CUresult cuModuleLoadDataEx(CUmodule *handle, const void *image, unsigned count, CUjit_option *options, void **values) {
    Lock lock(mutex);
    for (unsigned i = 0; i < count; i++)  // nothing is written to either log
        if (options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES || options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
            values[i] = nullptr;
    CUresult status;
    Context *context = current_outside_capture(status);
    if (!context) return status;
    if (std::memcmp(image, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
    // The file stays open: the loader takes a path that it knows for the library that it knows.
    int file = memfd_create("module", 0);
    size_t size = library_size(image);
    if (write(file, image, size) != static_cast<ssize_t>(size)) return CUDA_ERROR_OUT_OF_MEMORY;
    void *library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    void *launch = library ? dlsym(library, "emulation_launch") : nullptr;
    if (!launch) return CUDA_ERROR_INVALID_IMAGE;
    *handle = reinterpret_cast<CUmodule>(new Module{context, reinterpret_cast<Launch>(launch), {}});
    context->modules++;
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule handle) {
    Lock lock(mutex);
    Module *module = reinterpret_cast<Module *>(handle);
    module->context->modules--;
    return delete module, CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *handle, CUmodule module_handle, const char *name) {
    Lock lock(mutex);
    Module &module = *reinterpret_cast<Module *>(module_handle);
    const unsigned no_blocks[3] = {0, 0, 0}, one_thread[3] = {1, 1, 1};
    const char no_arguments[4096] = {};
    char text[256];
    if (module.launch(name, no_blocks, one_thread, no_arguments, text, sizeof text)) return CUDA_ERROR_NOT_FOUND;
    auto &function = module.functions.try_emplace(name, Function{name, module.launch}).first->second;
    return *handle = reinterpret_cast<CUfunction>(&function), CUDA_SUCCESS;
}
CUresult cuFuncSetBlockShape(CUfunction, int, int, int) { return CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned, CUstream stream, void **, void **extra) {
    Lock lock(mutex);
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    if (!extra || extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER || extra[2] != CU_LAUNCH_PARAM_BUFFER_SIZE)
        return CUDA_ERROR_NOT_SUPPORTED;
    const unsigned blocks = gx * gy * gz, threads = bx * by * bz;
    if (!blocks || gy > 65535 || gz > 65535 || !threads || threads > 1024) return CUDA_ERROR_INVALID_VALUE;
    const char *packed = static_cast<char *>(extra[1]);
    std::vector<char> arguments(packed, packed + *static_cast<size_t *>(extra[3]));
    arguments.resize(arguments.size() + 4096, PATTERN);  // what is missing shows
    return enqueue(stream, [=, function = *reinterpret_cast<Function *>(handle)] {
        return run(*context, function, {gx, gy, gz}, {bx, by, bz}, arguments.data());
    });
}

}  // extern "C"
