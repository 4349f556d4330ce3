using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Engine.Ops;
using LoraTrainer.Engine.Quantization;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// gemm_f32_*: the CPU's matrix product against OpenBLAS. gemm_nf4_*, gemm_bf16_*: the same product with a narrow weight against our own fp32.
/// Kinds: nt Y = X W^T, nn dX = dY W, tn dW = dY^T X.
/// </summary>
internal static unsafe class GemmBenchmarks
{
    private const int Tokens = 512;

    private static readonly (int Out, int In)[] Weights = [(576, 576), (1536, 576), (576, 1536), (2048, 2048), (5632, 2048), (2048, 5632)];

    private static readonly int[] Ranks = [8, 16, 64];

    /// <summary>False: a row against OpenBLAS was asked for and there is none.</summary>
    public static bool Run(BenchmarkReport report)
    {
        bool openBlas = report.WantsAny("gemm_f32_") && OpenBlas.LoadFastest();
        bool missed = false;
        foreach (int threads in Environment.ProcessorCount > 1 ? new[] { 1, 2 } : [1])
        {
            using var bench = new Bench(report, threads, openBlas);
            foreach ((int rows, int columns) in Weights)
            {
                bench.F32("nt", Tokens, rows, columns);
                bench.F32("nn", Tokens, columns, rows);
                bench.F32("tn", rows, columns, Tokens);
                bench.Narrow("nf4", "nt", Tokens, rows, columns);
                bench.Narrow("nf4", "nn", Tokens, columns, rows);
                bench.Narrow("bf16", "nt", Tokens, rows, columns);
            }

            foreach (int rank in Ranks)
            {
                // u = X A^T, Y += u B^T, du = dY B, dA = du^T X, dB = dY^T u.
                bench.F32("nt", Tokens, rank, 2048);
                bench.F32("nt", Tokens, 2048, rank);
                bench.F32("nn", Tokens, rank, 2048);
                bench.F32("tn", rank, 2048, Tokens);
                bench.F32("tn", 2048, rank, Tokens);
            }

            foreach (int tokens in new[] { 1, 4, 8 })
            {
                bench.F32("nt", tokens, 2048, 2048);
                bench.Narrow("nf4", "nt", tokens, 2048, 2048);
                bench.Narrow("bf16", "nt", tokens, 2048, 2048);
            }

            missed |= bench.MissedBaseline;
        }

        if (missed)
        {
            Console.Error.WriteLine("libopenblas.so.0 is not here, so the gemm_f32 rows have no baseline and are left out. Debian and Ubuntu: apt-get install libopenblas0-pthread");
        }

        return !missed;
    }

    /// <summary>For a child process: the rate of OpenBLAS with the kernels that its environment names.</summary>
    public static double OpenBlasRate()
    {
        if (!OpenBlas.Load())
        {
            return 0;
        }

        OpenBlas.SetThreads(1);
        using var problem = new Problem(Tokens, 2048, 2048);
        double best = 0;
        for (int round = 0; round < 24; round++)
        {
            long start = Stopwatch.GetTimestamp();
            problem.Blas(transposeA: false, transposeB: true);
            best = Math.Max(best, problem.GigaFlops / Stopwatch.GetElapsedTime(start).TotalSeconds);
        }

        return best;
    }

    private sealed class Bench(BenchmarkReport report, int threads, bool openBlas) : IDisposable
    {
        private readonly WorkerPool pool = new(threads);
        private readonly byte* workspace = (byte*)NativeMemory.AlignedAlloc((nuint)CpuGemm.WorkspaceBytes(threads), 64);

        /// <summary>A row was wanted whose baseline is not here.</summary>
        public bool MissedBaseline { get; private set; }

        public void Dispose()
        {
            pool.Dispose();
            NativeMemory.AlignedFree(workspace);
        }

        public void F32(string kind, int m, int n, int k)
        {
            string name = $"gemm_f32_{kind}_{m}x{n}x{k}_{threads}t";
            MissedBaseline |= !openBlas && report.Wants(name);
            if (!openBlas || !report.Wants(name))
            {
                return;
            }

            using var problem = new Problem(m, n, k);
            bool transposeA = kind[0] == 't', transposeB = kind[1] == 't';
            OpenBlas.SetThreads(threads);
            report.Compare(
                name, "GFLOP/s", problem.GigaFlops, () => problem.Own(pool, workspace, transposeA, transposeB), OpenBlas.Name, () => problem.Blas(transposeA, transposeB));
        }

        public void Narrow(string element, string kind, int m, int n, int k)
        {
            string name = $"gemm_{element}_{kind}_{m}x{n}x{k}_{threads}t";
            if (!report.Wants(name))
            {
                return;
            }

            using var problem = new Problem(m, n, k);
            bool transposed = kind[1] == 't';
            GemmOperand weight = element == "nf4" ? problem.Nf4Weight(transposed) : problem.BF16Weight(transposed);
            report.Compare(
                name, "GFLOP/s", problem.GigaFlops, () => problem.Own(pool, workspace, weight), "own f32", () => problem.Own(pool, workspace, false, transposed));
        }
    }

    private sealed class Problem : IDisposable
    {
        private readonly int m, n, k;
        private readonly float* a, b, c, absmax;
        private readonly byte* packed;

        public Problem(int m, int n, int k)
        {
            (this.m, this.n, this.k) = (m, n, k);
            a = Floats((long)m * k);
            b = Floats((long)k * n);
            c = Floats((long)m * n);
            long elements = (long)k * n, blocks = (elements + BlockwiseFourBit.Blocksize - 1) / BlockwiseFourBit.Blocksize;
            absmax = Floats(blocks);
            packed = (byte*)NativeMemory.AlignedAlloc((nuint)(elements + 1) / 2, 64);
            for (long i = 0; i < (elements + 1) / 2; i++)
            {
                packed[i] = (byte)(i * 2654435761 >> 13);
            }
        }

        public double GigaFlops => 2e-9 * m * n * k;

        public void Own(WorkerPool pool, byte* workspace, bool transposeA, bool transposeB)
            => CpuGemm.Run(
                pool, workspace, m, n, k, GemmOperand.F32(a, transposeA ? m : k, transposeA), GemmOperand.F32(b, transposeB ? k : n, transposeB), c, n);

        public void Own(WorkerPool pool, byte* workspace, in GemmOperand weight) => CpuGemm.Run(pool, workspace, m, n, k, GemmOperand.F32(a, k), weight, c, n);

        public GemmOperand Nf4Weight(bool transposed)
            => GemmOperand.FourBit(new FourBitBlocks(packed, FourBitCode.Nf4.Values, absmax), transposed ? k : n, transposed);

        /// <summary>The first half of the fp32 matrix's memory, read as bfloat16.</summary>
        public GemmOperand BF16Weight(bool transposed) => GemmOperand.BF16((ushort*)b, transposed ? k : n, transposed);

        public void Blas(bool transposeA, bool transposeB) => OpenBlas.Multiply(m, n, k, a, transposeA, b, transposeB, c);

        public void Dispose()
        {
            NativeMemory.AlignedFree(a);
            NativeMemory.AlignedFree(b);
            NativeMemory.AlignedFree(c);
            NativeMemory.AlignedFree(absmax);
            NativeMemory.AlignedFree(packed);
        }

        private static float* Floats(long count)
        {
            float* memory = (float*)NativeMemory.AlignedAlloc((nuint)count * sizeof(float), 64);
            for (long i = 0; i < count; i++)
            {
                memory[i] = (i * 2654435761 >> 8 & 1023) / 1024f - 0.5f;
            }

            return memory;
        }
    }

    /// <summary>The baseline: the distribution's OpenBLAS, where it is installed.</summary>
    private static class OpenBlas
    {
        private const string Library = "libopenblas.so.0";
        private const string CoreType = "OPENBLAS_CORETYPE";

        private static delegate* unmanaged<int, int, int, int, int, int, float, float*, int, float*, int, float, float*, int, void> sgemm;
        private static delegate* unmanaged<int, void> setThreads;

        /// <summary>"openblas", its version and the kernels it computes with.</summary>
        public static string Name { get; private set; } = "openblas";

        /// <summary>Loads the library with the kernels that are fastest here; false where there is none.</summary>
        public static bool LoadFastest()
        {
            string fastest = FastestCoreType();
            if (fastest.Length > 0)
            {
                // The library reads the environment of the C library, when it is loaded.
                _ = SetEnvironment(CoreType, fastest, 1);
            }

            return Load();
        }

        public static bool Load()
        {
            if (!NativeLibrary.TryLoad(Library, out nint library))
            {
                return false;
            }

            sgemm = (delegate* unmanaged<int, int, int, int, int, int, float, float*, int, float*, int, float, float*, int, void>)
                NativeLibrary.GetExport(library, "cblas_sgemm");
            setThreads = (delegate* unmanaged<int, void>)NativeLibrary.GetExport(library, "openblas_set_num_threads");
            var coreName = (delegate* unmanaged<byte*>)NativeLibrary.GetExport(library, "openblas_get_corename");
            var configuration = (delegate* unmanaged<byte*>)NativeLibrary.GetExport(library, "openblas_get_config");

            // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ..."
            string[] words = (Marshal.PtrToStringUTF8((nint)configuration()) ?? "").Split(' ');
            Name = $"openblas {(words.Length > 1 ? words[1] : "of an unknown version")} {Marshal.PtrToStringUTF8((nint)coreName())}";
            return true;
        }

        /// <summary>
        /// The kernels that are fastest here, each tried in a child process. On processors with AVX-512 that it does not know, the library takes
        /// narrower ones by itself, which would make the baseline too easy. Empty: those that it takes by itself, or that the user named.
        /// </summary>
        private static string FastestCoreType()
        {
            if (!Avx512F.IsSupported || Environment.GetEnvironmentVariable(CoreType) is { Length: > 0 } || RateOf("") == 0)
            {
                return "";
            }

            // Each twice, in turns, so that what disturbs the machine for a moment decides nothing.
            string[] types = ["", "SkylakeX", "Cooperlake", "Zen", "Haswell"];
            return types.Concat(types).Select(type => (Type: type, Rate: RateOf(type))).MaxBy(measured => measured.Rate).Type;
        }

        private static double RateOf(string coreType)
        {
            var start = new ProcessStartInfo("dotnet", [typeof(GemmBenchmarks).Assembly.Location, "--openblas-rate"]) { RedirectStandardOutput = true, RedirectStandardError = true };
            if (coreType.Length > 0)
            {
                start.Environment[CoreType] = coreType;
            }

            using Process process = Process.Start(start)!;
            string output = process.StandardOutput.ReadToEnd();
            process.WaitForExit();

            // Kernels for instructions that the processor lacks end the process.
            return process.ExitCode == 0 && double.TryParse(output, CultureInfo.InvariantCulture, out double rate) ? rate : 0;
        }

        public static void SetThreads(int threads) => setThreads(threads);

        public static void Multiply(int m, int n, int k, float* a, bool transposeA, float* b, bool transposeB, float* c)
        {
            const int rowMajor = 101, plain = 111, transposed = 112;
            sgemm(
                rowMajor, transposeA ? transposed : plain, transposeB ? transposed : plain, m, n, k, 1, a, transposeA ? m : k, b, transposeB ? k : n, 0, c, n);
        }

        [DllImport("libc", EntryPoint = "setenv")]
        [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
        private static extern int SetEnvironment([MarshalAs(UnmanagedType.LPUTF8Str)] string name, [MarshalAs(UnmanagedType.LPUTF8Str)] string value, int overwrite);
    }
}
