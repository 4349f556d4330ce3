using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;
using System.Text.Json;
using LoraTrainer.EndToEnd.Tests.Protocols.Otlp;
using LoraTrainer.EndToEnd.Tests.Protocols.TensorBoard;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>What those see who watch a run with other programs: TensorBoard's files and an OpenTelemetry collector.</summary>
public sealed class WatchingTests : IDisposable
{
    private readonly TinyFolder run = new(changes: [("cost", "{rate: 3.6}"), ("evaluate_before", "false")]);

    public void Dispose() => run.Dispose();

    [Fact]
    public async Task TensorBoard_HasEveryStepAsTheLogHasIt()
    {
        Ending end = await run.RunAsync("train", "tiny.yaml", "--set", "use_tensorboard=true", "--set", "eval_steps=4");

        Assert.True(end.ExitCode == 0, end.ToString());
        Event[] events = Events(Assert.Single(Files()));
        Assert.Equal("brain.Event:2", events[0].FileVersion);
        Assert.Equal((1L, SessionLog.Types.SessionStatus.Start), (events[1].Step, events[1].SessionLog.Status));
        JsonElement[] all = [.. File.ReadAllLines(run.PathOf("out/log.jsonl")).Select(line => JsonDocument.Parse(line).RootElement)];
        JsonElement[] evaluations = [.. all.Where(line => line.TryGetProperty("eval_loss", out _))], lines = [.. all.Where(line => line.TryGetProperty("loss", out _))];
        Assert.True(evaluations.Length >= 3, $"{evaluations.Length} evaluations");
        Assert.Equal(evaluations.Select(line => (line.GetProperty("step").GetInt64(), (float)line.GetProperty("eval_loss").GetDouble())), Values(events, "eval/loss"));
        Assert.Equal(lines.Select(line => (line.GetProperty("step").GetInt64(), (float)line.GetProperty("loss").GetDouble())), Values(events, "train/loss"));
        Assert.Equal(lines.Select(line => (line.GetProperty("step").GetInt64(), (float)line.GetProperty("learning_rate").GetDouble())), Values(events, "train/learning_rate"));
        Assert.All(Values(events, "speed/tokens_per_second"), value => Assert.True(value.Value > 0));
        Assert.All(Values(events, "cost/spent"), value => Assert.True(value.Value > 0));
        using JsonDocument summary = JsonDocument.Parse(File.ReadAllText(run.PathOf("out/summary.json")));
        JsonElement after = summary.RootElement.GetProperty("evaluation").GetProperty("after");
        Assert.Equal((float)after.GetProperty("loss").GetDouble(), Values(events, "eval/loss")[^1].Value);
        Assert.Equal((float)after.GetProperty("exact_match").GetDouble(), Assert.Single(Values(events, "eval/exact_match")).Value);
        Assert.Contains($"after step {evaluations[0].GetProperty("step")}: held-out loss ", end.Output, StringComparison.Ordinal);
    }

    /// <summary>Steps that were lost stand in the first file; the second says from where on it replaces them.</summary>
    [Fact]
    public async Task TensorBoard_OfAResumedRun_ReplacesTheStepsThatWereLost()
    {
        string[] rarely = ["--set", "use_tensorboard=true", "--set", "checkpoint.every_steps=3"];
        Assert.Equal(137, (await run.RunAsync(["train", "tiny.yaml", .. rarely], new Moment("step ", 5, 0))).ExitCode);
        int saved = run.CheckpointFolders() is [.., var last] ? int.Parse(Path.GetFileName(last).Split('-')[1], System.Globalization.CultureInfo.InvariantCulture) : 0;
        Ending end = await run.RunAsync("resume", "out");

        Assert.True(end.ExitCode == 0, end.ToString());
        Event[] events = Events(Files()[^1]);
        Assert.Equal(2, Files().Length);
        Assert.Equal(saved + 1, events[1].Step);
        Assert.Equal(saved + 1, Values(events, "train/loss")[0].Step);
    }

    [Fact]
    public async Task Metrics_ReachACollector()
    {
        using var collector = new Collector();

        Ending end = await run.RunAsync("train", "tiny.yaml", "--set", $"otlp_endpoint={collector.Address}", "--set", "eval_steps=4");

        Assert.True(end.ExitCode == 0, end.ToString());
        ResourceMetrics last = collector.Received.Last().ResourceMetrics.Single();
        Dictionary<string, string> resource = last.Resource.Attributes.ToDictionary(item => item.Key, item => item.Value.StringValue);
        Assert.Equal(("lora-trainer", "tiny"), (resource["service.name"], resource["lora_trainer.run"]));
        Dictionary<string, Metric> metrics = last.ScopeMetrics.Single().Metrics.ToDictionary(metric => metric.Name);
        using JsonDocument summary = JsonDocument.Parse(File.ReadAllText(run.PathOf("out/summary.json")));
        int steps = summary.RootElement.GetProperty("steps").GetInt32();
        Assert.Equal(summary.RootElement.GetProperty("loss").GetProperty("last").GetDouble(), metrics["lora_trainer.loss"].Gauge.DataPoints.Single().AsDouble);
        Assert.Equal(steps, metrics["lora_trainer.step"].Gauge.DataPoints.Single().AsDouble);
        Assert.Equal(steps, metrics["lora_trainer.steps"].Sum.DataPoints.Single().AsInt);
        JsonElement evaluation = summary.RootElement.GetProperty("evaluation");
        Assert.Equal(evaluation.GetProperty("during").EnumerateArray().Last().GetProperty("loss").GetDouble(), metrics["lora_trainer.eval.loss"].Gauge.DataPoints.Single().AsDouble);
        Assert.Equal(evaluation.GetProperty("best").GetProperty("loss").GetDouble(), metrics["lora_trainer.eval.best_loss"].Gauge.DataPoints.Single().AsDouble);
        Assert.Equal("USD", metrics["lora_trainer.cost.spent"].Unit);
        Assert.True(metrics["lora_trainer.cost.spent"].Gauge.DataPoints.Single().AsDouble > 0);
        Assert.All(collector.Paths, path => Assert.Equal("/v1/metrics", path));
    }

    [Fact]
    public async Task Metrics_WithoutACollectorThere_CostTheRunNothing()
    {
        Ending end = await run.RunAsync("train", "tiny.yaml", "--set", "otlp_endpoint=http://127.0.0.1:9");
        Ending secret = await run.RunAsync("validate", "tiny.yaml", "--set", "otlp_endpoint=http://me:secret@collector:4318");

        Assert.True(end.ExitCode == 0, end.ToString());
        Assert.Equal(2, secret.ExitCode);
        Assert.Contains("OTEL_EXPORTER_OTLP_HEADERS", secret.Error, StringComparison.Ordinal);
    }

    private string[] Files() => [.. Directory.EnumerateFiles(run.PathOf("out/tensorboard"), "events.out.tfevents.*").OrderBy(File.GetCreationTimeUtc)];

    private static (long Step, float Value)[] Values(Event[] events, string tag) =>
        [.. events.Where(item => item.WhatCase == Event.WhatOneofCase.Summary).SelectMany(item => item.Summary.Value.Where(value => value.Tag == tag).Select(value => (item.Step, value.SimpleValue)))];

    /// <summary>The records of a file, the sums of each checked.</summary>
    private static Event[] Events(string file)
    {
        byte[] bytes = File.ReadAllBytes(file);
        var events = new List<Event>();
        for (int at = 0; at < bytes.Length;)
        {
            int length = (int)BinaryPrimitives.ReadUInt64LittleEndian(bytes.AsSpan(at));
            Assert.Equal(Masked(bytes.AsSpan(at, 8)), BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(at + 8)));
            Assert.Equal(Masked(bytes.AsSpan(at + 12, length)), BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(at + 12 + length)));
            events.Add(Event.Parser.ParseFrom(bytes, at + 12, length));
            at += 16 + length;
        }

        return [.. events];
    }

    /// <summary>CRC-32C bit by bit, as it is defined (RFC 3720, B.4), and the mask of record files.</summary>
    private static uint Masked(ReadOnlySpan<byte> content)
    {
        uint crc = uint.MaxValue;
        foreach (byte value in content)
        {
            crc ^= value;
            for (int bit = 0; bit < 8; bit++)
            {
                crc = (crc & 1) == 0 ? crc >> 1 : (crc >> 1) ^ 0x82F63B78;
            }
        }

        crc = ~crc;
        return ((crc >> 15) | (crc << 17)) + 0xA282EAD8;
    }

    [Fact]
    public void Masked_IsTheSumOfTheStandard()
    {
        // RFC 3720, B.4: 32 bytes of zeros.
        uint sum = 0x8A9136AA;
        Assert.Equal(((sum >> 15) | (sum << 17)) + 0xA282EAD8, Masked(new byte[32]));
    }

    /// <summary>A collector that takes OTLP over HTTP and answers as one that took everything.</summary>
    private sealed class Collector : IDisposable
    {
        private readonly HttpListener listener = new();

        public Collector()
        {
            using (var free = new TcpListener(IPAddress.Loopback, 0))
            {
                free.Start();
                Address = $"http://127.0.0.1:{((IPEndPoint)free.LocalEndpoint).Port}";
            }

            listener.Prefixes.Add(Address + "/");
            listener.Start();
            _ = Task.Run(ServeAsync);
        }

        public string Address { get; }

        public ConcurrentQueue<ExportMetricsServiceRequest> Received { get; } = [];

        public ConcurrentQueue<string> Paths { get; } = [];

        public void Dispose() => listener.Close();

        private async Task ServeAsync()
        {
            try
            {
                while (true)
                {
                    HttpListenerContext context = await listener.GetContextAsync();
                    using var body = new MemoryStream();
                    await context.Request.InputStream.CopyToAsync(body);
                    Paths.Enqueue(context.Request.Url!.AbsolutePath);
                    Received.Enqueue(ExportMetricsServiceRequest.Parser.ParseFrom(body.ToArray()));
                    context.Response.ContentType = "application/x-protobuf";
                    context.Response.Close();
                }
            }
            catch (Exception exception) when (exception is HttpListenerException or ObjectDisposedException)
            {
                // The end of the test.
            }
        }
    }
}
