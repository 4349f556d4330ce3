using System.Globalization;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Native.Cuda;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// The rows of a GPU: cuda_copy and cuda_kernel_* (memory-bound kernels against the copy bandwidth), cuda_gemm_* and cuda_attention_* (against the
/// largest matrix product rate), cuda_step_* (whole training steps). On the CPU stand-ins they only run with tiny shapes, and give no results.
/// </summary>
internal static class CudaBenchmarks
{
    public static void Run(BenchmarkReport report, bool shrink)
    {
        CudaSizes sizes = shrink ? CudaSizes.Tiny : CudaSizes.Full;
        CudaRow[] rows = [.. CudaKernelBenchmarks.Rows(sizes).Concat(CudaProductBenchmarks.Rows(sizes)).Where(row => report.Wants(row.Name))];
        CudaStep[] steps = [.. CudaStepBenchmarks.All.Where(step => report.Wants(step.Name) && (report.IsFiltered || shrink))];
        if (rows.Length == 0 && steps.Length == 0)
        {
            return;
        }

        if (!CudaDevice.TryDescribe(out CudaDeviceInfo? gpu, out string missing))
        {
            Console.Error.WriteLine($"The cuda_* rows are left out: {missing}");
            return;
        }

        bool standin = CudaLibraries.Exports(CudaLibrary.Driver, "lt_standin_count");
        if (standin && !shrink)
        {
            Console.Error.WriteLine("The cuda_* rows are left out: the CUDA libraries here are the stand-ins that run kernels on the processor. --shrink tries the code on them.");
            return;
        }

        string processor = report.Machine;
        report.Machine = MachineName(gpu);
        report.IsRehearsal = shrink;
        Kernels(report, sizes, rows);
        foreach (CudaStep step in steps)
        {
            CudaStepBenchmarks.Run(report, sizes, step);
        }

        report.Machine = processor;
        report.IsRehearsal = false;
    }

    private static void Kernels(BenchmarkReport report, CudaSizes sizes, CudaRow[] rows)
    {
        if (rows.Length == 0)
        {
            return;
        }

        if (!CudaDevice.TryOpen(sizes.KernelArenaBytes, out CudaDevice? device, out string reason))
        {
            Console.Error.WriteLine($"The rows of kernels are left out: {reason}");
            return;
        }

        using (device)
        {
            var bench = new CudaBench(report, device, sizes);
            var rates = new CudaRates(bench);
            foreach (CudaRow row in rows)
            {
                rates.Run(row);
            }
        }
    }

    /// <summary>The GPU, and the driver that it ran with.</summary>
    private static string MachineName(CudaDeviceInfo gpu) => string.Create(CultureInfo.InvariantCulture,
        $"{gpu.Name}, {gpu.TotalMemoryBytes / (double)(1 << 30):0} GiB, compute capability {gpu.ComputeCapability}, driver {DriverRelease() ?? "unknown"} (CUDA {gpu.DriverVersion})");

    /// <summary>For example 580.82.07; the kernel module says it.</summary>
    private static string? DriverRelease()
    {
        const string path = "/proc/driver/nvidia/version";
        return File.Exists(path)
            ? File.ReadLines(path).First().Split(' ', StringSplitOptions.RemoveEmptyEntries).FirstOrDefault(word => word.Length > 4 && word.All(letter => char.IsAsciiDigit(letter) || letter == '.'))
            : null;
    }
}

/// <summary>What a row is held against.</summary>
internal enum CudaBaseline
{
    /// <summary>A copy within the device's memory, in GB/s read and written.</summary>
    Copy,

    /// <summary>The fastest bf16 matrix product that was found, in TFLOP/s.</summary>
    Product,
}

/// <summary>One row: a call that is measured.</summary>
/// <param name="Name">Of the row.</param>
/// <param name="Work">Bytes that have to be moved at least, or floating-point operations.</param>
/// <param name="Baseline">What it is held against; decides the unit.</param>
/// <param name="Prepare">Makes the tensors, in a frame that lasts for the row, and returns what queues one call.</param>
internal sealed record CudaRow(string Name, double Work, CudaBaseline Baseline, Func<CudaBench, Action<int>> Prepare);
