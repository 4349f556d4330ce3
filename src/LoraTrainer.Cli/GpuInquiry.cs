using System.ComponentModel;
using System.Diagnostics;
using System.Text.Json;
using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Cli;

/// <summary>
/// Whether a GPU still works that reported an error of its work. The process that met the error gets it from every call after it, whatever was at fault, so a new one asks: this
/// program's own doctor.
/// </summary>
internal static class GpuInquiry
{
    private const string Log = "nvidia-smi and the lines with Xid in the system's log (dmesg) tell more.";

    // A context takes some tenths of a second, more where many cards share a machine; a driver that hangs does so for good.
    private static readonly TimeSpan Longest = TimeSpan.FromSeconds(30);

    /// <summary>A sentence or two; null where the new process could not be made, or says nothing.</summary>
    /// <param name="fault">What the error says.</param>
    public static string? Ask(GpuFault fault)
    {
        try
        {
            using Process process = Process.Start(TrainingProcess.StartOf("doctor", "--json"))!;
            Task<string> output = process.StandardOutput.ReadToEndAsync();
            _ = process.StandardError.ReadToEndAsync();
            if (!process.WaitForExit(Longest))
            {
                process.Kill();
                return $"A new process that asks for the GPU got no answer in {Longest.TotalSeconds:0} s: the card or its driver hangs. {Log}";
            }

            return Sentence(output.GetAwaiter().GetResult(), fault);
        }
        catch (Exception exception) when (exception is InvalidOperationException or Win32Exception or IOException or JsonException or KeyNotFoundException)
        {
            return null;
        }
    }

    /// <summary>What doctor's answer comes to.</summary>
    /// <param name="doctor">Its JSON document.</param>
    /// <param name="fault">What the error says.</param>
    internal static string Sentence(string doctor, GpuFault fault)
    {
        using JsonDocument document = JsonDocument.Parse(doctor);
        JsonElement cuda = document.RootElement.GetProperty("cuda");
        if (!cuda.GetProperty("available").GetBoolean())
        {
            return $"The GPU is lost, it failed or was taken away: a new process cannot use it. {cuda.GetProperty("reason").GetString()} {Log}";
        }

        // Free memory is told by a context only.
        return cuda.GetProperty("device").GetProperty("free_bytes").ValueKind == JsonValueKind.Null
            ? $"A new process sees the GPU and cannot work on it. {Log}"
            : fault == GpuFault.Unclear
            ? "The GPU is not lost: a new process can use it. So a kernel was at fault, or the card failed for a moment; then there is a line with Xid in the system's log (dmesg)."
            : "The GPU is not lost: a new process can use it.";
    }
}
