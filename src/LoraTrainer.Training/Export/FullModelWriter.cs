using System.Runtime.InteropServices;
using System.Text;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Models.Layers;
using LoraTrainer.Storage;

namespace LoraTrainer.Training.Export;

/// <summary>Writes a fully trained model as a folder that transformers loads: config.json and model.safetensors in bf16.</summary>
public static class FullModelWriter
{
    /// <summary>Rounds every weight to bf16, to nearest with ties to even. Returns the weight file.</summary>
    /// <param name="folder">Exists.</param>
    /// <param name="shape">Of the model.</param>
    /// <param name="model">All of whose weights are parameters.</param>
    public static string Write(string folder, ModelConfig shape, CausalLanguageModel model)
    {
        var writer = new SafetensorsWriter();
        ReadOnlySpan<ParameterSegment> segments = model.Parameters.Segments;
        for (int i = 0; i < segments.Length; i++)
        {
            Parameter parameter = model.Parameters.Parameters[i];
            long[] extents = parameter.Shape.Rank == 1 ? [parameter.Shape[0]] : [parameter.Shape[0], parameter.Shape[1]];
            long first = segments[i].Offset;
            writer.Add(parameter.Name, SafetensorsDType.BF16, extents, (offset, destination) => Round(model.Parameters.Values, first + offset / sizeof(ushort), destination));
        }

        string path = Path.Combine(folder, ModelFolder.SingleFileName);
        writer.Save(path);
        AtomicFile.WriteAllBytes(Path.Combine(folder, "config.json"), Encoding.UTF8.GetBytes((shape with { DType = SafetensorsDType.BF16 }).ToJson()));
        return path;
    }

    private static void Round(Tensor values, long firstElement, Span<byte> destination)
    {
        Span<ushort> rounded = MemoryMarshal.Cast<byte, ushort>(destination);
        float[] exact = new float[rounded.Length];
        values.Device.Download(values, MemoryMarshal.AsBytes(exact.AsSpan()), firstElement);
        for (int i = 0; i < exact.Length; i++)
        {
            rounded[i] = BrainFloat.FromSingle(exact[i]);
        }
    }
}
