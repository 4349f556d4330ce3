using System.Globalization;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using System.Text.Json;
using LoraTrainer.Engine.Devices;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Says what the machine has and what the program makes of it.</summary>
internal static class DoctorVerb
{
    private const string Examples = """
        Examples:
          lora-trainer doctor
          lora-trainer doctor --json
        """;

    public static Verb Create() => new Verb("doctor", "Say what this machine has: processor, memory, disk, GPU.", Examples).WithWork(context => Task.FromResult(Run(context)));

    private static ExitCode Run(VerbContext context)
    {
        Machine machine = Machine.Look();
        foreach ((string name, string value) in machine.Lines())
        {
            context.Terminal.Result($"{name,-16}{value}");
        }

        context.Terminal.Json(machine.WriteJson);
        return ExitCode.Done;
    }

    private sealed record Disk(string Role, string Path, long FreeBytes, long TotalBytes);

    private sealed record Machine
    {
        private string System { get; init; } = "";

        private string Runtime { get; init; } = "";

        private string Processor { get; init; } = "";

        private int Cores { get; init; }

        private IReadOnlyList<string> Instructions { get; init; } = [];

        private string VectorWidth { get; init; } = "";

        private long TotalMemoryBytes { get; init; }

        private long? AvailableMemoryBytes { get; init; }

        private IReadOnlyList<Disk> Disks { get; init; } = [];

        private CudaReport Cuda { get; init; } = new() { Libraries = [], Problem = "not looked for" };

        public static Machine Look() => new()
        {
            System = $"{RuntimeInformation.OSDescription}, {RuntimeInformation.OSArchitecture.ToString().ToLowerInvariant()}",
            Runtime = RuntimeInformation.FrameworkDescription,
            Processor = ValueOf("/proc/cpuinfo", "model name") ?? RuntimeInformation.ProcessArchitecture.ToString(),
            Cores = Environment.ProcessorCount,
            Instructions = [.. new[]
                {
                    ("AVX2", Avx2.IsSupported), ("FMA", Fma.IsSupported), ("AVX-512F", Avx512F.IsSupported), ("AVX-512BW", Avx512BW.IsSupported),
                    ("AVX-512VBMI", Avx512Vbmi.IsSupported), ("NEON", global::System.Runtime.Intrinsics.Arm.AdvSimd.IsSupported),
                }.Where(set => set.Item2).Select(set => set.Item1)],
            VectorWidth = Vector512.IsHardwareAccelerated ? "512 bits" : Vector256.IsHardwareAccelerated ? "256 bits" : Vector128.IsHardwareAccelerated ? "128 bits" : "none",
            TotalMemoryBytes = GC.GetGCMemoryInfo().TotalAvailableMemoryBytes,
            AvailableMemoryBytes = ValueOf("/proc/meminfo", "MemAvailable") is { } text && long.TryParse(text.Split(' ')[0], NumberStyles.None, CultureInfo.InvariantCulture, out long kibibytes) ? kibibytes * 1024 : null,
            Disks = [.. new[] { ("current folder", Directory.GetCurrentDirectory()), ("temporary files", Path.GetTempPath()) }.Select(place => DiskOf(place.Item1, place.Item2)).OfType<Disk>()],
            Cuda = CudaDevice.Describe(),
        };

        public IEnumerable<(string Name, string Value)> Lines()
        {
            yield return ("system", System);
            yield return ("runtime", Runtime);
            yield return ("processor", $"{Processor}, {Quantities.Count(Cores, "core")} for this process");
            yield return ("instructions", $"{(Instructions.Count == 0 ? "none of those used here" : string.Join(", ", Instructions))} (vectors of {VectorWidth})");
            yield return ("memory", AvailableMemoryBytes is { } available ? $"{Quantities.Bytes(TotalMemoryBytes)}, {Quantities.Bytes(available)} available" : Quantities.Bytes(TotalMemoryBytes));
            foreach (Disk disk in Disks)
            {
                yield return (disk.Role, $"{Quantities.Bytes(disk.FreeBytes)} free of {Quantities.Bytes(disk.TotalBytes)} ({disk.Path})");
            }

            if (Cuda.Device is { } gpu)
            {
                string free = gpu.FreeMemoryBytes is { } bytes ? $", {Quantities.Bytes(bytes)} free" : "";
                string others = Cuda.DeviceCount > 1 ? $" (the first of {Cuda.DeviceCount})" : "";
                yield return ("gpu", $"{gpu.Name}{others}, {Quantities.Bytes(gpu.TotalMemoryBytes)}{free}, compute capability {gpu.ComputeCapability}, {gpu.MultiprocessorCount} multiprocessors");
            }

            if (!Cuda.Available)
            {
                // What to do about a library that is missing stands behind its name.
                yield return (Cuda.Device is null ? "gpu" : "", Cuda.Libraries.All(library => library.Path is not null) ? Cuda.Reason : Cuda.Problem);
            }

            foreach (CudaLibraryInfo library in Cuda.Libraries)
            {
                yield return (library.Name, library.Path is null ? $"not found ({library.Purpose}): {library.Install}" : $"{library.Version} ({library.Path})");
            }

            if (Cuda.Libraries.Any(library => library.Path is null))
            {
                yield return ("", "Other ways to get what is missing: README.md, \"On a GPU\".");
            }

            foreach (string warning in Cuda.Warnings)
            {
                yield return ("warning", warning);
            }

            yield return ("device: auto", Cuda.Available ? "takes the GPU" : "takes the CPU");
        }

        public void WriteJson(Utf8JsonWriter json)
        {
            json.WriteStartObject();
            json.WriteString("system", System);
            json.WriteString("runtime", Runtime);
            json.WriteStartObject("cpu");
            json.WriteString("model", Processor);
            json.WriteNumber("cores", Cores);
            json.WriteStartArray("instruction_sets");
            foreach (string instruction in Instructions)
            {
                json.WriteStringValue(instruction);
            }

            json.WriteEndArray();
            json.WriteEndObject();
            json.WriteStartObject("memory");
            json.WriteNumber("total_bytes", TotalMemoryBytes);
            if (AvailableMemoryBytes is { } available)
            {
                json.WriteNumber("available_bytes", available);
            }
            else
            {
                json.WriteNull("available_bytes");
            }

            json.WriteEndObject();
            json.WriteStartArray("disks");
            foreach (Disk disk in Disks)
            {
                json.WriteStartObject();
                json.WriteString("role", disk.Role);
                json.WriteString("path", disk.Path);
                json.WriteNumber("free_bytes", disk.FreeBytes);
                json.WriteNumber("total_bytes", disk.TotalBytes);
                json.WriteEndObject();
            }

            json.WriteEndArray();
            WriteCuda(json);
            json.WriteString("auto_device", Cuda.Available ? "cuda" : "cpu");
            json.WriteEndObject();
        }

        private void WriteCuda(Utf8JsonWriter json)
        {
            json.WriteStartObject("cuda");
            json.WriteBoolean("available", Cuda.Available);
            WriteText(json, "reason", Cuda.Available ? null : Cuda.Reason);
            json.WriteStartArray("warnings");
            foreach (string warning in Cuda.Warnings)
            {
                json.WriteStringValue(warning);
            }

            json.WriteEndArray();
            json.WriteNumber("devices", Cuda.DeviceCount);
            if (Cuda.Device is { } gpu)
            {
                json.WriteStartObject("device");
                json.WriteString("name", gpu.Name);
                json.WriteString("compute_capability", gpu.ComputeCapability);
                json.WriteNumber("multiprocessors", gpu.MultiprocessorCount);
                json.WriteNumber("total_bytes", gpu.TotalMemoryBytes);
                if (gpu.FreeMemoryBytes is { } free)
                {
                    json.WriteNumber("free_bytes", free);
                }
                else
                {
                    json.WriteNull("free_bytes");
                }

                json.WriteString("driver_version", gpu.DriverVersion);
                json.WriteEndObject();
            }
            else
            {
                json.WriteNull("device");
            }

            json.WriteStartArray("libraries");
            foreach (CudaLibraryInfo library in Cuda.Libraries)
            {
                json.WriteStartObject();
                json.WriteString("name", library.Name);
                json.WriteString("purpose", library.Purpose);
                WriteText(json, "path", library.Path);
                WriteText(json, "version", library.Version);
                WriteText(json, "install", library.Path is null ? library.Install : null);
                json.WriteStartArray("attempts");
                foreach ((string path, string error) in library.Attempts)
                {
                    json.WriteStartObject();
                    json.WriteString("path", path);
                    json.WriteString("error", error);
                    json.WriteEndObject();
                }

                json.WriteEndArray();
                json.WriteEndObject();
            }

            json.WriteEndArray();
            json.WriteEndObject();
        }

        private static void WriteText(Utf8JsonWriter json, string name, string? text)
        {
            if (text is null)
            {
                json.WriteNull(name);
            }
            else
            {
                json.WriteString(name, text);
            }
        }

        private static Disk? DiskOf(string role, string path)
        {
            try
            {
                DriveInfo drive = new(path);
                return new Disk(role, path, drive.AvailableFreeSpace, drive.TotalSize);
            }
            catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or ArgumentException)
            {
                return null;
            }
        }

        /// <summary>The value of the first line "name : value" of a file of the kernel, or null.</summary>
        private static string? ValueOf(string file, string name)
        {
            try
            {
                string? line = File.ReadLines(file).FirstOrDefault(line => line.StartsWith(name, StringComparison.Ordinal));
                return line?[(line.IndexOf(':', StringComparison.Ordinal) + 1)..].Trim();
            }
            catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
            {
                return null;
            }
        }
    }
}
