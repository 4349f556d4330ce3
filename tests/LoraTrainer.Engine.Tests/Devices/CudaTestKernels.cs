using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>Tests that use the stand-in CUDA libraries run one after the other: its counters and its scheduling belong to the process.</summary>
[CollectionDefinition(CudaStandin.Collection, DisableParallelization = true)]
public sealed class CudaStandinTests;

/// <summary>Kernels made for the tests of the device itself, so that these do not depend on the product's.</summary>
internal static unsafe class CudaTestKernels
{
    public const string Header = """
        #if defined(LT_EMULATOR)
        #include "emu.h"
        #define LT_SHARED(name) unsigned char* const name = emu_cur->blk->dyn
        #else
        #define LT_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
        #endif
        """;

    public const string Source = """
        #include "test.cuh"
        struct every { long long a; double b; int c; float d; };
        // output[i] = a * input[i] + b
        extern "C" __global__ void scale(float* output, const float* input, int count, float a, float b) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < count) output[i] = a * input[i] + b;
        }
        // What arrives of arguments of every kind.
        extern "C" __global__ void echo(double* output, int a, unsigned b, long long c, unsigned long long d, float e, double f, every g) {
            if (threadIdx.x == 0) {
                output[0] = a; output[1] = b; output[2] = (double)c; output[3] = (double)d; output[4] = e; output[5] = f;
                output[6] = (double)g.a; output[7] = g.b; output[8] = g.c; output[9] = g.d;
            }
        }
        // Turns a block's row of bytes around through shared memory.
        extern "C" __global__ void reverse(unsigned char* bytes, int count) {
            LT_SHARED(row);
            for (int i = threadIdx.x; i < count; i += blockDim.x) row[i] = bytes[i];
            __syncthreads();
            for (int i = threadIdx.x; i < count; i += blockDim.x) bytes[i] = row[count - 1 - i];
        }
        // Writes where an address points, whatever it points to.
        extern "C" __global__ void write_to(const unsigned long long* address) {
            if (threadIdx.x == 0) *(int*)address[0] = 1;
        }
        """;

    public const string VariantSource = """
        #include "test.cuh"
        extern "C" __global__ void variant(int* output) {
            if (threadIdx.x == 0) output[0] = LT_TEST_SIZE;
        }
        """;

    public static readonly CudaKernel Scale = new("test.cu", "scale", KernelParameter.Pointer("output"), KernelParameter.Pointer("input"), KernelParameter.Int32("count"), KernelParameter.Float32("a"), KernelParameter.Float32("b"));

    public static readonly CudaKernel Echo = new(
        "test.cu", "echo", KernelParameter.Pointer("output"), KernelParameter.Int32("a"), KernelParameter.UInt32("b"), KernelParameter.Int64("c"), KernelParameter.UInt64("d"), KernelParameter.Float32("e"), KernelParameter.Float64("f"),
        KernelParameter.Struct<Every>("g"));

    public static readonly CudaKernel Reverse = new("test.cu", "reverse", KernelParameter.Pointer("bytes"), KernelParameter.Int32("count"));

    public static readonly CudaKernel WriteTo = new("test.cu", "write_to", KernelParameter.Pointer("address"));

    public static readonly CudaKernel Variant = CudaKernel.WithVariants("variant.cu", "variant", "LT_TEST_SIZE", 16, 256, null, 1, KernelParameter.Pointer("output"));

    public static KernelSources Sources { get; } = With();

    /// <summary>The sources above, some of them replaced or added to.</summary>
    public static KernelSources With(params (string File, string Text)[] changes)
    {
        var files = new Dictionary<string, string> { ["test.cuh"] = Header, ["test.cu"] = Source, ["variant.cu"] = VariantSource };
        foreach ((string file, string text) in changes)
        {
            files[file] = text;
        }

        return new KernelSources(files);
    }

    public static CudaDevice Open(CudaDeviceOptions? options = null, long capacityBytes = 16 << 20, long hostBytes = 0)
    {
        CudaStandin.Require();
        CudaStandin.Configure();
        CudaStandin.Reset();
        Assert.True(CudaDevice.TryOpen(new DeviceMemory(capacityBytes, hostBytes), options ?? Options(), out CudaDevice? device, out string reason, out _), reason);
        return device;
    }

    public static CudaDeviceOptions Options() => new() { Sources = Sources, CacheFolder = null };

    [StructLayout(LayoutKind.Sequential)]
    public struct Every
    {
        public long A;
        public double B;
        public int C;
        public float D;
    }
}
