using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Tensors;

namespace LoraTrainer.TestSupport;

/// <summary>Arrays to a device and back.</summary>
public static class DeviceTensors
{
    public static float[] Download(this Tensor tensor)
    {
        float[] values = new float[tensor.ElementCount];
        tensor.Device.Download(tensor, MemoryMarshal.AsBytes(values.AsSpan()));
        return values;
    }

    public static Tensor Upload(this Device device, ReadOnlySpan<float> values, Shape shape)
    {
        Tensor tensor = device.Arena.Allocate(MemoryKind.Activations, DType.F32, shape);
        device.Upload(tensor, MemoryMarshal.AsBytes(values));
        return tensor;
    }
}
