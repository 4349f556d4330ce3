using System.Diagnostics.Metrics;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using OpenTelemetry;
using OpenTelemetry.Exporter;
using OpenTelemetry.Metrics;
using OpenTelemetry.Resources;

namespace LoraTrainer.Cli.Watching;

/// <summary>
/// Sends what a run measures to an OpenTelemetry collector, every ten seconds and at the end, where one is configured: <c>otlp_endpoint</c>, or the variables
/// of the OpenTelemetry specification (OTEL_EXPORTER_OTLP_ENDPOINT, _METRICS_ENDPOINT, _HEADERS, _PROTOCOL, OTEL_METRIC_EXPORT_INTERVAL). A collector that does
/// not answer costs a run nothing.
/// </summary>
internal sealed class OtlpMetrics : ITrainingObserver, IDisposable
{
    private const string Endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT";
    private const string MetricsEndpoint = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
    private const string Protocol = "OTEL_EXPORTER_OTLP_PROTOCOL";
    private const string Interval = "OTEL_METRIC_EXPORT_INTERVAL";
    private const string MetricsPath = "/v1/metrics";
    private const int UsualIntervalMilliseconds = 10_000;
    private const int GoodbyeMilliseconds = 3_000;

    private readonly Meter meter = new("lora-trainer");
    private readonly MeterProvider provider;
    private readonly Counter<long> steps;
    private readonly Lock gate = new();
    private TrainingProgress latest;
    private int countedSteps = -1;
    private double? heldOutLoss;
    private double? bestHeldOutLoss;

    private OtlpMetrics(TrainingConfig config)
    {
        steps = meter.CreateCounter<long>("lora_trainer.steps", "{step}", "Steps that this process has done.");
        Gauge("lora_trainer.step", "{step}", "Steps of the run that are done.", progress => progress.TotalSteps > 0 ? progress.Step : null);
        Gauge("lora_trainer.total_steps", "{step}", "Steps of the run.", progress => progress.TotalSteps > 0 ? progress.TotalSteps : null);
        Gauge("lora_trainer.loss", "1", "Training loss of the last step.", progress => progress.Loss);
        Gauge("lora_trainer.eval.loss", "1", "Held-out loss of the last evaluation during the training.", _ => heldOutLoss);
        Gauge("lora_trainer.eval.best_loss", "1", "The lowest of them.", _ => bestHeldOutLoss);
        Gauge("lora_trainer.learning_rate", "1", "Learning rate of the last step.", progress => progress.LearningRate);
        Gauge("lora_trainer.gradient_norm", "1", "Norm of the gradients of the last step.", progress => progress.GradientNorm);
        Gauge("lora_trainer.tokens_per_second", "{token}/s", "Tokens of the last step in a second.", progress => progress.TokensPerSecond);
        Gauge("lora_trainer.memory", "By", "Memory of the process.", progress => progress.MemoryBytes);
        Gauge("lora_trainer.cost.spent", config.Cost.Currency, "What the run has cost, over all its attempts.", progress => (double?)progress.MoneySpent);
        Gauge("lora_trainer.cost.forecast", config.Cost.Currency, "What the run will have cost at its end.", progress => (double?)progress.MoneyForecast);
        Gauge("lora_trainer.time.remaining", "s", "What the steps will still take.", progress => progress.Remaining?.TotalSeconds);

        ResourceBuilder resource = ResourceBuilder.CreateDefault()
            .AddService("lora-trainer", serviceInstanceId: $"{Environment.MachineName}:{Environment.ProcessId}")
            .AddAttributes([new("lora_trainer.run", config.RunName), new("lora_trainer.model", config.BaseModel), .. config.Cost.Project is { } project ? [new KeyValuePair<string, object>("lora_trainer.project", project)] : Array.Empty<KeyValuePair<string, object>>()])
            .AddEnvironmentVariableDetector();
        provider = Sdk.CreateMeterProviderBuilder().AddMeter(meter.Name).SetResourceBuilder(resource).AddOtlpExporter((exporter, reader) =>
        {
            if (!IsSet(Protocol))
            {
                // What the specification recommends; the library's own default is gRPC.
                exporter.Protocol = OtlpExportProtocol.HttpProtobuf;
            }

            if (config.OtlpEndpoint is { } endpoint)
            {
                // As a base address, like the variable's; a gRPC exporter takes it as it is.
                exporter.Endpoint = new Uri(exporter.Protocol == OtlpExportProtocol.HttpProtobuf && !endpoint.EndsWith(MetricsPath, StringComparison.Ordinal) ? endpoint.TrimEnd('/') + MetricsPath : endpoint);
            }

            reader.PeriodicExportingMetricReaderOptions.ExportIntervalMilliseconds = IsSet(Interval) ? null : UsualIntervalMilliseconds;
        }).Build();
    }

    /// <summary>Null where nobody has configured a collector.</summary>
    public static OtlpMetrics? Start(TrainingConfig config) =>
        config.OtlpEndpoint is not null || IsSet(Endpoint) || IsSet(MetricsEndpoint) ? new OtlpMetrics(config) : null;

    public void OnProgress(in TrainingProgress progress)
    {
        lock (gate)
        {
            if (progress.Phase != TrainingPhase.Training)
            {
                return;
            }

            if (countedSteps >= 0 && progress.Step > countedSteps)
            {
                steps.Add(progress.Step - countedSteps);
            }

            countedSteps = Math.Max(countedSteps, progress.Step);
            latest = progress;
        }
    }

    public void OnNotice(string sentence)
    {
    }

    public void OnWarning(string sentence)
    {
    }

    public void OnEvaluation(EvaluationPoint point, bool isBest)
    {
        lock (gate)
        {
            heldOutLoss = double.IsFinite(point.Loss) ? point.Loss : null;
            bestHeldOutLoss = isBest ? point.Loss : bestHeldOutLoss;
        }
    }

    public void OnSample(string prompt, string expected, string generated)
    {
    }

    public void Dispose()
    {
        provider.ForceFlush(GoodbyeMilliseconds);
        provider.Shutdown(GoodbyeMilliseconds);
        provider.Dispose();
        meter.Dispose();
    }

    private static bool IsSet(string variable) => Environment.GetEnvironmentVariable(variable) is { Length: > 0 };

    /// <summary>The value at the moment of each export; nothing before the first step.</summary>
    private void Gauge(string name, string unit, string description, Func<TrainingProgress, double?> value) => meter.CreateObservableGauge(name, () =>
    {
        lock (gate)
        {
            return value(latest) is { } known ? [new Measurement<double>(known)] : Array.Empty<Measurement<double>>();
        }
    }, unit, description);
}
