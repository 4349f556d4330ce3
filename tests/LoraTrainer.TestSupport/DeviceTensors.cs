using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.TestSupport;

/// <summary>Arrays to a device and back.</summary>
public static class DeviceTensors
{
    /// <summary>The elements of an f32 or bf16 tensor.</summary>
    public static float[] Download(this Tensor tensor)
    {
        if (tensor.DType == DType.BF16)
        {
            ushort[] bits = new ushort[tensor.ElementCount];
            tensor.Device.Download(tensor, MemoryMarshal.AsBytes(bits.AsSpan()));
            return Array.ConvertAll(bits, BrainFloat.ToSingle);
        }

        float[] values = new float[tensor.ElementCount];
        tensor.Device.Download(tensor, MemoryMarshal.AsBytes(values.AsSpan()));
        return values;
    }

    public static byte[] DownloadBytes(this Tensor tensor)
    {
        byte[] bytes = new byte[tensor.SizeBytes];
        tensor.Device.Download(tensor, bytes);
        return bytes;
    }

    public static Tensor Upload(this Device device, ReadOnlySpan<float> values, Shape shape)
    {
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.F32, shape);
        device.Upload(tensor, MemoryMarshal.AsBytes(values));
        return tensor;
    }
}
