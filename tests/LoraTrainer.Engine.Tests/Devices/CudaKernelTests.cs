using System.Runtime.CompilerServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using Xunit;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>Declarations of kernels, their arguments, and what they are compiled for.</summary>
public sealed class CudaKernelTests
{
    [Fact]
    public void All_HasEveryKernelOnce()
    {
        Assert.Equal(47, CudaKernels.All.Count);
        Assert.Equal(47, CudaKernels.All.Select(kernel => kernel.Name).Distinct().Count());
        Assert.All(CudaKernels.All, kernel => Assert.EndsWith(".cu", kernel.File, StringComparison.Ordinal));
    }

    [Fact]
    public void Declarations_ReadAsTheKernelsAreWritten()
    {
        Assert.Equal("rms_norm_forward(output (Pointer), rstd (Pointer), input (Pointer), weight (Pointer), width (Int32), eps (Float32))", CudaKernels.RmsNormForward.ToString());
        Assert.Equal("attention_forward (LT_HEAD_DIM=64)(arguments (Struct, 80 bytes))", CudaKernels.AttentionForward.With(64).ToString());
    }

    // The sizes and offsets that a C++ compiler gives these structs.
    [Fact]
    public void Structs_HaveTheLayoutOfC()
    {
        Assert.Equal(24, Unsafe.SizeOf<AdamWSegment>());
        Assert.Equal(20, Unsafe.SizeOf<AdamWConstants>());
        Assert.Equal(32, Unsafe.SizeOf<AdamW8BitSegment>());
        Assert.Equal(20, Unsafe.SizeOf<AdamW8BitConstants>());
        Assert.Equal(80, Unsafe.SizeOf<AttentionArguments>());
        Assert.Equal(120, Unsafe.SizeOf<AttentionGradients>());
        Assert.Equal(96, Unsafe.SizeOf<MatmulHeuristicResult>());
        Assert.Equal(64, Unsafe.SizeOf<MatmulAlgorithm>());
    }

    [Theory]
    [InlineData(1, 16)]
    [InlineData(16, 16)]
    [InlineData(17, 32)]
    [InlineData(72, 80)]
    [InlineData(128, 128)]
    [InlineData(250, 256)]
    public void With_RoundsUp_AndGivesTheSameInstance(int headDim, int compiled)
    {
        CudaKernel kernel = CudaKernels.AttentionForward.With(headDim);

        Assert.Equal(($"LT_HEAD_DIM={compiled}", compiled), (kernel.Define, kernel.Variant));
        Assert.Same(kernel, CudaKernels.AttentionForward.With(compiled));
        Assert.NotSame(kernel, CudaKernels.AttentionDelta.With(headDim));
    }

    [Fact]
    public void With_AForm_NamesBothMacros()
    {
        CudaKernel capped = CudaKernels.AttentionForward.With(60, CudaKernels.CappedScores);

        Assert.Equal("LT_HEAD_DIM=64 LT_SCORES=2", capped.Define);
        Assert.Equal("attention_forward (LT_HEAD_DIM=64 LT_SCORES=2)", capped.Title);
        Assert.Same(capped, CudaKernels.AttentionForward.With(64, CudaKernels.CappedScores));
        Assert.NotSame(capped, CudaKernels.AttentionForward.With(64));
        Assert.Equal(["-DLT_HEAD_DIM=64", "-DLT_SCORES=2"], new KernelTarget("sm_80", NvrtcOutput.Cubin).Options(capped.Define)[^2..]);
        Assert.Throws<ArgumentOutOfRangeException>(() => CudaKernels.AttentionForward.With(64, CudaKernels.CappedScores + 1));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(257)]
    public void With_ValueOutOfRange_Throws(int headDim) =>
        Assert.Contains("attention_forward is compiled for LT_HEAD_DIM up to 256", Assert.Throws<ArgumentOutOfRangeException>(() => CudaKernels.AttentionForward.With(headDim)).Message, StringComparison.Ordinal);

    [Fact]
    public void With_KernelHasNoVariants_Throws() =>
        Assert.Equal("rms_norm_forward comes in one form only.", Assert.Throws<InvalidOperationException>(() => CudaKernels.RmsNormForward.With(64)).Message);

    [Fact]
    public unsafe void Arguments_KnowTheirKindAndHoldTheirValue()
    {
        var constants = new AdamWConstants { Beta2 = 0.5f };
        KernelArgument[] arguments = [unchecked((nint)0x7f0000001000), -3, 7u, long.MinValue, ulong.MaxValue, 1.5f, -2.25, KernelArgument.Struct(&constants)];

        Assert.Equal(
            [(KernelParameterKind.Pointer, 8), (KernelParameterKind.Int32, 4), (KernelParameterKind.UInt32, 4), (KernelParameterKind.Int64, 8), (KernelParameterKind.UInt64, 8), (KernelParameterKind.Float32, 4), (KernelParameterKind.Float64, 8), (KernelParameterKind.Struct, 20)],
            arguments.Select(argument => (argument.Kind, argument.SizeBytes)));
        fixed (KernelArgument* first = arguments)
        {
            Assert.Equal(0x7f0000001000, *(nint*)KernelArgument.Location(first));
            Assert.Equal(-3, *(int*)KernelArgument.Location(first + 1));
            Assert.Equal(7u, *(uint*)KernelArgument.Location(first + 2));
            Assert.Equal(long.MinValue, *(long*)KernelArgument.Location(first + 3));
            Assert.Equal(ulong.MaxValue, *(ulong*)KernelArgument.Location(first + 4));
            Assert.Equal(1.5f, *(float*)KernelArgument.Location(first + 5));
            Assert.Equal(-2.25, *(double*)KernelArgument.Location(first + 6));
            Assert.True(KernelArgument.Location(first + 7) == &constants);
        }
    }

    [Theory]
    [InlineData(80, "sm_80")]
    [InlineData(86, "sm_86")]
    [InlineData(90, "sm_90a")]
    [InlineData(120, "sm_120")]
    [InlineData(87, "sm_86")] // not known, code of an earlier one of its generation runs
    [InlineData(121, "sm_120")]
    [InlineData(130, "compute_120")] // newer than the compiler
    [InlineData(94, "sm_90")]
    public void Target_IsTheBestThatTheCompilerKnows(int architecture, string expected)
    {
        KernelTarget target = KernelTarget.For(architecture, [75, 80, 86, 89, 90, 100, 103, 120], new Version(13, 0));

        Assert.Equal((expected, expected.StartsWith("sm", StringComparison.Ordinal) ? NvrtcOutput.Cubin : NvrtcOutput.Ptx), (target.Architecture, target.Output));
    }

    [Fact]
    public void Target_CompilerDoesNotTell_IsTheCard() => Assert.Equal("sm_100", KernelTarget.For(100, [], new Version(12, 8)).Architecture);

    [Fact]
    public void Target_CompilerOfElevenPointEight_HasNoArchitectureSpecificCode() => Assert.Equal("sm_90", KernelTarget.For(90, [80, 90], new Version(11, 8)).Architecture);

    [Fact]
    public void Target_CompilerKnowsOnlyNewerOnes_Throws() =>
        Assert.Equal("NVRTC 15.0 cannot compile for compute capability 8.0; the lowest it knows is 9.0. An older NVRTC does.", Assert.Throws<NotSupportedException>(() => KernelTarget.For(80, [90, 100], new Version(15, 0))).Message);

    [Fact]
    public void Options_NameWhatResultsDependOn() =>
        Assert.Equal(["--gpu-architecture=sm_80", "--std=c++17", "-default-device", "--fmad=true", "-DLT_HEAD_DIM=64"], new KernelTarget("sm_80", NvrtcOutput.Cubin).Options("LT_HEAD_DIM=64"));

    [Theory]
    [InlineData("CudaDriver.cuMemFree(memory)", "cuMemFree")]
    [InlineData("CublasLt.cublasLtMatmulDescCreate(out Descriptor, CublasLt.ComputeF32, 0)", "cublasLtMatmulDescCreate")]
    [InlineData("an upload", "an upload")]
    public void Function_OfACall_IsItsName(string call, string expected) => Assert.Equal(expected, CudaCheck.Function(call));
}
