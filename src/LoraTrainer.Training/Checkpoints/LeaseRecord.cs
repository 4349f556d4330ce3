using System.Globalization;
using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Training.Checkpoints;

/// <summary>What a lease says of its run.</summary>
public enum LeaseState
{
    /// <summary>Somebody works on the run.</summary>
    Held,

    /// <summary>Nobody does; whoever comes goes on.</summary>
    Released,

    /// <summary>Nobody does, because somebody asked for that: only an explicit resume goes on.</summary>
    Stopped,

    /// <summary>The run is done.</summary>
    Finished,
}

/// <summary>A process, so that another one on the same machine can tell whether it still runs.</summary>
/// <param name="Host">Name of the machine, for people.</param>
/// <param name="BootId">Of the kernel (/proc/sys/kernel/random/boot_id) and the process namespace: process numbers mean something only where both are equal.</param>
/// <param name="ProcessId">Number of the process there.</param>
/// <param name="ProcessStart">Clock ticks from boot to its start (proc(5), stat, field 22): tells it from a later one with the same number.</param>
public sealed record LeaseHolder(string Host, string BootId, int ProcessId, long ProcessStart)
{
    /// <summary>This process.</summary>
    public static LeaseHolder Current { get; } = new(Environment.MachineName, ThisBoot(), Environment.ProcessId, StartOf("self") ?? 0);

    /// <summary>True where the process ran on this very machine and has certainly ended.</summary>
    public bool IsProvablyDead => BootId.Length > 0 && BootId == Current.BootId && (StartOf(ProcessId.ToString(CultureInfo.InvariantCulture)) is not { } start || start != ProcessStart);

    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"process {ProcessId} on {Host}");

    /// <summary>The <c>holder</c> of a lease or an attempt.</summary>
    /// <exception cref="FormatException">A text is null.</exception>
    internal static LeaseHolder Read(JsonElement root)
    {
        JsonElement holder = root.GetProperty("holder");
        return new LeaseHolder(Text("host"), Text("boot"), holder.GetProperty("process").GetInt32(), holder.GetProperty("start").GetInt64());

        string Text(string name) => holder.GetProperty(name).GetString() ?? throw new FormatException($"{name} is null");
    }

    internal void Write(Utf8JsonWriter json)
    {
        json.WriteStartObject("holder");
        json.WriteString("host", Host);
        json.WriteString("boot", BootId);
        json.WriteNumber("process", ProcessId);
        json.WriteNumber("start", ProcessStart);
        json.WriteEndObject();
    }

    private static string ThisBoot()
    {
        const string bootId = "/proc/sys/kernel/random/boot_id", processNamespace = "/proc/self/ns/pid";
        string? space = File.Exists(bootId) ? new FileInfo(processNamespace).LinkTarget : null;
        return space is null ? string.Empty : $"{File.ReadAllText(bootId).Trim()} {space}";
    }

    /// <summary>Null where there is no such process, or it is a zombie.</summary>
    private static long? StartOf(string process)
    {
        try
        {
            // The name in parentheses may hold anything; the fields are counted behind it.
            string stat = File.ReadAllText($"/proc/{process}/stat");
            string[] fields = stat[(stat.LastIndexOf(')') + 2)..].Split(' ');
            return fields[0] is "Z" or "X" ? null : long.Parse(fields[19], CultureInfo.InvariantCulture);
        }
        catch (IOException)
        {
            return null;
        }
    }
}

/// <summary>The content of lease.json.</summary>
/// <param name="RunId">Identifies the run in every ledger; made with its first lease.</param>
/// <param name="Epoch">Grows with each takeover.</param>
/// <param name="State">What it says of the run.</param>
/// <param name="Nonce">New with each renewal: a lease that changes is alive, whatever any clock says.</param>
/// <param name="Seconds">After so long without a change another machine may take the run over.</param>
/// <param name="Holder">The process that wrote it.</param>
/// <param name="Written">By the holder's clock; for people only.</param>
public sealed record LeaseRecord(string RunId, int Epoch, LeaseState State, string Nonce, double Seconds, LeaseHolder Holder, DateTimeOffset Written)
{
    /// <summary>Above it a number is no epoch of this program: each takeover adds one, and there must be room for the next.</summary>
    internal const int HighestEpoch = 1_000_000_000;

    /// <summary>No lease of this program is larger.</summary>
    internal const int LargestBytes = 1 << 16;

    /// <summary>Reads a lease; <paramref name="source"/> names it in messages.</summary>
    /// <exception cref="CheckpointFormatException">It is not what this program writes.</exception>
    public static LeaseRecord Parse(string source, ReadOnlyMemory<byte> utf8)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(utf8);
            JsonElement root = document.RootElement;
            var record = new LeaseRecord(
                root.GetProperty("run_id").GetString()!,
                root.GetProperty("epoch").GetInt32(),
                StateOf(root.GetProperty("state").GetString()),
                root.GetProperty("nonce").GetString()!,
                root.GetProperty("seconds").GetDouble(),
                LeaseHolder.Read(root),
                root.GetProperty("written").GetDateTimeOffset());
            return record is { Epoch: > 0 and <= HighestEpoch, Seconds: >= 1 and <= 3600, RunId.Length: > 0, Nonce.Length: > 0 } ? record : throw new FormatException("a number is out of bounds");
        }
        catch (Exception exception) when (exception is JsonException or KeyNotFoundException or InvalidOperationException or FormatException or ArgumentException)
        {
            throw Refused(source, exception is JsonException json ? JsonProblem.Reason(json) : exception.Message, exception);
        }

        // Not Enum.Parse: that takes numbers and lists too.
        static LeaseState StateOf(string? word) => word switch
        {
            "held" => LeaseState.Held,
            "released" => LeaseState.Released,
            "stopped" => LeaseState.Stopped,
            "finished" => LeaseState.Finished,
            _ => throw new FormatException("its state is not known"),
        };
    }

    /// <summary>What is under the lease's name is none; says what to do.</summary>
    internal static CheckpointFormatException Refused(string source, string reason, Exception? cause = null)
    {
        string message = $"{source} is not a lease of this program ({reason}). If no machine works on this run, delete it and try again.";
        return cause is null ? new CheckpointFormatException(message) : new CheckpointFormatException(message, cause);
    }

    public byte[] ToJson()
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteString("run_id", RunId);
            json.WriteNumber("epoch", Epoch);
            json.WriteString("state", State.ToString().ToLowerInvariant());
            json.WriteString("nonce", Nonce);
            json.WriteNumber("seconds", Seconds);
            Holder.Write(json);
            json.WriteString("written", Written);
            json.WriteEndObject();
        }

        return buffer.ToArray();
    }
}
