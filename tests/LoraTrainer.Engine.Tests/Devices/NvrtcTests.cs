using System.Text;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>The binding of NVIDIA's compiler, with the real one: it needs no GPU.</summary>
public sealed class NvrtcTests
{
    private static readonly (string, string)[] Headers = [("value.cuh", "#define VALUE 7\n")];

    private const string Source = "#include \"value.cuh\"\nextern \"C\" __global__ void fill(int* output, float unused) {\n    output[threadIdx.x] = VALUE * FACTOR;\n}\n";

    [Theory]
    [InlineData(80)]
    [InlineData(90)]
    [InlineData(100)]
    [InlineData(120)]
    public void Compile_ForACard_IsAnElfFile(int architecture)
    {
        Nvrtc nvrtc = Load();
        KernelTarget target = KernelTarget.For(architecture, nvrtc.Architectures, nvrtc.Version);
        byte[] image = nvrtc.Compile("fill.cu", Source, Headers, target.Options("FACTOR=3"), target.Output, out string messages);

        Assert.Equal(NvrtcOutput.Cubin, target.Output);
        Assert.Equal("\u007fELF"u8.ToArray(), image[..4]);
        Assert.Equal("", messages);
    }

    [Fact]
    public void Compile_ForACardThatItDoesNotKnow_IsPtxWithItsClosingZero()
    {
        Nvrtc nvrtc = Load();
        KernelTarget target = KernelTarget.For(990, nvrtc.Architectures, nvrtc.Version);
        byte[] image = nvrtc.Compile("fill.cu", Source, Headers, target.Options("FACTOR=3"), target.Output, out _);

        Assert.Equal(NvrtcOutput.Ptx, target.Output);
        Assert.Equal(0, image[^1]);
        Assert.Contains(".entry fill(", Encoding.UTF8.GetString(image), StringComparison.Ordinal);
    }

    [Fact]
    public void Compile_Error_NamesFileAndLine()
    {
        KernelCompilationException error = Assert.Throws<KernelCompilationException>(() => Load().Compile("fill.cu", Source, Headers, ["--gpu-architecture=sm_80"], NvrtcOutput.Cubin, out _));

        Assert.StartsWith("The kernels in fill.cu do not compile (NVRTC_ERROR_COMPILATION, NVRTC 13.", error.Message, StringComparison.Ordinal);
        Assert.Contains("\nfill.cu:3: error: identifier \"FACTOR\" is undefined", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Compile_Warning_IsAMessage()
    {
        Load().Compile("fill.cu", Source.Replace("output[", "int forgotten; output[", StringComparison.Ordinal), Headers, ["--gpu-architecture=sm_80", "-DFACTOR=1"], NvrtcOutput.Cubin, out string messages);

        Assert.Contains("fill.cu:3: warning", messages, StringComparison.Ordinal);
        Assert.Contains("forgotten", messages, StringComparison.Ordinal);
    }

    [Fact]
    public void Compile_UnknownOption_IsRefused() =>
        Assert.Contains("NVRTC_ERROR_INVALID_OPTION", Assert.Throws<KernelCompilationException>(() => Load().Compile("fill.cu", Source, Headers, ["--no-such-option"], NvrtcOutput.Cubin, out _)).Message, StringComparison.Ordinal);

    [Fact]
    public void Architectures_AreAscendingAndHoldThoseWeServe()
    {
        IReadOnlyList<int> known = Load().Architectures;

        Assert.Equal(known.Order(), known);
        Assert.Empty(((int[])[80, 86, 89, 90, 100, 120]).Except(known));
    }

    private static Nvrtc Load()
    {
        Assert.True(Nvrtc.TryLoad(RealNvrtc.Require(), out Nvrtc? nvrtc, out string reason), reason);
        return nvrtc;
    }
}
