using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Benchmarks;

/// <summary>What a run costs beside its arithmetic, on the quickstart: the way to its first step, and the managed memory of a step.</summary>
internal static class RunBenchmarks
{
    /// <summary>As the test of the trainer has it.</summary>
    private const double StepBudgetBytes = 4096;

    public static void Run(BenchmarkReport report)
    {
        if (report.Wants("startup_first_step"))
        {
            Startup(report, "startup_first_step");
        }

        if (report.Wants("managed_bytes_step"))
        {
            ManagedBytes(report, "managed_bytes_step");
        }
    }

    /// <summary>
    /// From the start of the process to the line of the first optimizer step: loading, tokenizing and planning included, no evaluation. It is held
    /// against a process that starts and says its version, in turns.
    /// </summary>
    private static void Startup(BenchmarkReport report, string name)
    {
        const int runs = 5;
        double[] seconds = new double[runs], bare = new double[runs];
        ProgramRun.Prepare();
        for (int run = 0; run < runs; run++)
        {
            bare[run] = ProgramRun.SecondsToLine("", "--version");
            string folder = Directory.CreateTempSubdirectory("lora-trainer-benchmark-").FullName;
            try
            {
                seconds[run] = ProgramRun.SecondsToLine(
                    "step 1/", "train", "configs/quickstart.yaml", "--set", "output_dir=" + Path.Combine(folder, "out"), "--set", "max_steps=1", "--set", "warmup_steps=0",
                    "--set", "logging_steps=1", "--set", "evaluate_before=false", "--set", "evaluate_after=false");
            }
            finally
            {
                Directory.Delete(folder, recursive: true);
            }
        }

        report.Add(name, seconds.Min(), "s", "own --version", bare.Min(), bare.Min() / seconds.Min(), seconds);
    }

    /// <summary>Managed bytes that all threads allocate in an optimizer step of the trainer, once it runs steadily.</summary>
    private static void ManagedBytes(BenchmarkReport report, string name)
    {
        const int warmUp = 5, steps = 20;
        TrainingConfig read = ConfigurationLoader.LoadFile(Path.Combine(ProgramRun.RepositoryRoot, "configs", "quickstart.yaml"), []).Require();
        TrainingConfig config = read with
        {
            BaseModel = Path.Combine(ProgramRun.RepositoryRoot, read.BaseModel),
            Data = read.Data with { TestDatasets = [], Datasets = [.. read.Data.Datasets.Select(dataset => dataset with { Path = Path.Combine(ProgramRun.RepositoryRoot, dataset.Path) })] },
        };
        int threads = Environment.ProcessorCount;
        var shape = ModelConfig.Parse(config.BaseModel);
        using TrainingData data = TrainingData.Load(config, Tokenizer.Load(config.BaseModel), shape.VocabSize, threads, Path.GetTempPath(), new Silence(), CancellationToken.None);
        using ModelFolder weights = ModelFolder.Open(config.BaseModel);
        MemoryPlan plan = MemoryPlan.Measure(config, shape, weights, new DeviceSelection(DevicePlatform.Cpu, threads, null), new PlannedPasses(LargestMicroBatch.Of(config, data).Tokens, data.HeldOut, config.Data.SequenceLen));
        using var device = new CpuDevice(threads, plan.ArenaBytes);
        var trainer = new Trainer(config, TrainedModel.Build(config, shape, weights, device), data);
        var bytes = new double[steps];
        for (int step = 0; step < warmUp + steps; step++)
        {
            long before = GC.GetTotalAllocatedBytes(precise: true);
            trainer.Step();
            if (step >= warmUp)
            {
                bytes[step - warmUp] = GC.GetTotalAllocatedBytes(precise: true) - before;
            }
        }

        double most = bytes.Max();
        report.Add(name, most, "bytes", "budget", StepBudgetBytes, StepBudgetBytes / Math.Max(1, most), bytes);
    }

    private sealed class Silence : ITrainingObserver
    {
        public void OnProgress(in TrainingProgress progress)
        {
        }

        public void OnNotice(string sentence)
        {
        }

        public void OnWarning(string sentence)
        {
        }

        public void OnEvaluation(EvaluationPoint point, bool isBest)
        {
        }

        public void OnSample(string prompt, string expected, string generated)
        {
        }
    }
}
