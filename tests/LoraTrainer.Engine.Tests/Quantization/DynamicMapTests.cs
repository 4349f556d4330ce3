using System.Runtime.InteropServices;
using System.Security.Cryptography;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Quantization;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Quantization;

public sealed unsafe class DynamicMapTests
{
    [Fact]
    public void Maps_Bytes_HaveTheKnownHashes()
    {
        Assert.Equal("E732639A65F497B4AD684BB166A4467708255EDD5207757DE8B8F0C7E1FDA89C", Hash(DynamicMap.Signed));
        Assert.Equal("305F002CC11278FB769D13B25B9FD0C7C83C8402C40A878FE086F4039FDE6398", Hash(DynamicMap.Unsigned));
    }

    [Fact]
    [Trait("Category", "Fixtures")]
    public void Maps_Fixture_BitEqual()
    {
        var file = new SafetensorsFile(Fixtures.Require("bitsandbytes/dynamic_maps.safetensors"));
        TensorAssert.BitEqual(file.Floats("signed"), Values(DynamicMap.Signed), "signed");
        TensorAssert.BitEqual(file.Floats("unsigned"), Values(DynamicMap.Unsigned), "unsigned");
    }

    [Fact]
    public void Nearest_GoldenValues()
    {
        Assert.Equal<byte>(
            [0, 35, 64, 112, 127, 127, 127, 128, 142, 190, 219, 255, 255, 255],
            Nearest(DynamicMap.Signed, [-1, -0.5f, -0.1f, -1e-3f, -1e-7f, 0, 1e-7f, 3e-7f, 1e-3f, 0.1f, 0.5f, 0.9965f, 0.997f, 1]));
        Assert.Equal<byte>([0, 0, 1, 30, 126, 183, 255, 255], Nearest(DynamicMap.Unsigned, [0, 1e-7f, 2e-7f, 1e-3f, 0.1f, 0.5f, 0.9983f, 1]));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Nearest_AroundEveryMidpoint_TiesGoToTheEvenCode(bool withSign)
    {
        DynamicMap map = withSign ? DynamicMap.Signed : DynamicMap.Unsigned;
        float[] values = Values(map), x = new float[255 * 3];
        var expected = new byte[x.Length];
        for (int i = 0; i < 255; i++)
        {
            float middle = (values[i] + values[i + 1]) * 0.5f;
            (x[3 * i], x[3 * i + 1], x[3 * i + 2]) = (MathF.BitDecrement(middle), middle, MathF.BitIncrement(middle));
            (expected[3 * i], expected[3 * i + 1], expected[3 * i + 2]) = ((byte)i, (byte)(i + i % 2), (byte)(i + 1));
        }

        Assert.Equal(expected, Nearest(map, x));
        Assert.Equal<byte>([0, 0, 255, 0, 0, 255, 0, 0, 255], Nearest(map, [float.NaN, -9, 9, float.NaN, -9, 9, float.NaN, -9, 9]));
    }

    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(BitsandbytesFixtures.Blockwise8), MemberType = typeof(BitsandbytesFixtures))]
    public void Blockwise_Fixture_EqualCodesAndScales(string name)
    {
        var file = new SafetensorsFile(Fixtures.Require($"bitsandbytes/{name}"));
        using var pool = new WorkerPool(2);
        float[] weight = file.Floats("weight"), absmax = new float[(weight.Length + 255) / 256], dequantized = new float[weight.Length];
        byte[] codes = new byte[weight.Length];
        var map = new DynamicMap(file.Floats("code"));
        fixed (float* w = weight, a = absmax, d = dequantized)
        fixed (byte* c = codes)
        {
            BlockwiseDynamic8.Quantize(pool, map, w, weight.Length, 256, c, a);
            BlockwiseDynamic8.Dequantize(map, c, a, weight.Length, 256, d);
        }

        TensorAssert.BitEqual(file.Floats("absmax"), absmax, name + " absmax");
        Assert.Equal(file.Bytes("codes"), codes);
        TensorAssert.BitEqual(file.Floats("dequantized"), dequantized, name + " dequantized");
    }

    private static float[] Values(DynamicMap map) => new ReadOnlySpan<float>(map.Values, DynamicMap.Entries).ToArray();

    private static string Hash(DynamicMap map) => Convert.ToHexString(SHA256.HashData(MemoryMarshal.AsBytes<float>(Values(map))));

    private static byte[] Nearest(DynamicMap map, float[] x)
    {
        var codes = new byte[x.Length];
        fixed (float* pointer = x)
        fixed (byte* c = codes)
        {
            DynamicMap.Nearest(map.Thresholds, pointer, 1, x.Length, c);
        }

        return codes;
    }
}
