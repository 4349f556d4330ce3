using System.Net;
using System.Net.Sockets;
using System.Text;

namespace LoraTrainer.TestSupport;

/// <summary>What goes wrong on a connection.</summary>
public enum FaultKind
{
    /// <summary>The connection is reset as soon as it is made.</summary>
    Refuse,

    /// <summary>The proxy answers itself with an error of S3's, and the server does not get the request.</summary>
    Answer,

    /// <summary>The connection is reset on the way up.</summary>
    CutUp,

    /// <summary>The connection is reset on the way down.</summary>
    CutDown,

    /// <summary>The server does what it was asked, and its answer does not arrive.</summary>
    LoseAnswer,

    /// <summary>Nothing moves any more on the way up.</summary>
    StallUp,

    /// <summary>Nothing moves any more on the way down.</summary>
    StallDown,

    /// <summary>One byte is changed on the way up.</summary>
    FlipUp,

    /// <summary>One byte is changed on the way down.</summary>
    FlipDown,

    /// <summary>Everything takes longer.</summary>
    Slow,

    /// <summary>On the way up it waits until it is released.</summary>
    HoldUp,
}

/// <summary>One fault, met by the first connection that gets as far as <see cref="After"/>.</summary>
public sealed class Fault(FaultKind kind)
{
    private readonly TaskCompletionSource reached = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly TaskCompletionSource released = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private int hits;

    public FaultKind Kind { get; } = kind;

    /// <summary>The bytes in its direction that pass before it, counted on each connection from when the proxy got the fault.</summary>
    public long After { get; init; }

    /// <summary>Only requests whose first line this holds for; it meets them as a whole. On the way up.</summary>
    public Func<string, bool>? Request { get; init; }

    /// <summary>How many connections meet it.</summary>
    public int Times { get; init; } = 1;

    /// <summary>Of <see cref="FaultKind.Slow"/>.</summary>
    public int BytesPerSecond { get; init; } = 1 << 20;

    /// <summary>The code of <see cref="FaultKind.Answer"/>.</summary>
    public string Code { get; init; } = "SlowDown";

    /// <summary>The status of <see cref="FaultKind.Answer"/>.</summary>
    public int Status { get; init; } = 503;

    /// <summary>How many connections have met it.</summary>
    public int Hits => Math.Min(Volatile.Read(ref hits), Times);

    /// <summary>Done when the first connection has met it.</summary>
    public Task Reached => reached.Task;

    internal bool IsOfUp => Kind is FaultKind.CutUp or FaultKind.StallUp or FaultKind.FlipUp or FaultKind.HoldUp or FaultKind.Answer or FaultKind.Slow;

    internal Task Released => released.Task;

    /// <summary>Ends <see cref="FaultKind.HoldUp"/>.</summary>
    public void Release() => released.TrySetResult();

    /// <summary>A request comes in pieces, of which the first begins with its first line.</summary>
    internal bool Concerns(ReadOnlySpan<byte> bytes)
    {
        int end = bytes.IndexOf((byte)'\r');
        return Request is null || (end >= 0 && Request(Encoding.ASCII.GetString(bytes[..end])));
    }

    internal bool TryMeet()
    {
        if (Interlocked.Increment(ref hits) > Times)
        {
            return false;
        }

        reached.TrySetResult();
        return true;
    }
}

/// <summary>A TCP proxy on loopback that breaks connections on purpose, at exact bytes. A test asserts <see cref="Fault.Hits"/>: a fault that was not met proves nothing.</summary>
public sealed class FaultProxy : IAsyncDisposable
{
    private readonly TcpListener listener = new(IPAddress.Loopback, 0);
    private readonly CancellationTokenSource stop = new();
    private readonly int serverPort;
    private readonly Lock gate = new();
    private readonly List<Connection> open = [];
    private readonly Task accepting;
    private volatile Fault? fault;
    private long bytesUp;

    public FaultProxy(int serverPort)
    {
        this.serverPort = serverPort;
        listener.Start();
        accepting = AcceptAsync();
    }

    public int Port => ((IPEndPoint)listener.LocalEndpoint).Port;

    /// <summary>All bytes that came from clients.</summary>
    public long BytesUp => Interlocked.Read(ref bytesUp);

    /// <summary>From now on this fault is to be met, and no earlier one; null for none.</summary>
    public Fault? Set(Fault? next)
    {
        lock (gate)
        {
            open.ForEach(connection => connection.CountAnew());
            fault = next;
        }

        return next;
    }

    public async ValueTask DisposeAsync()
    {
        if (!stop.IsCancellationRequested)
        {
            // Stopped when nothing waits for a connection any more, or the next wait would find it stopped.
            await stop.CancelAsync();
            await accepting;
            listener.Stop();
        }

        stop.Dispose();
    }

    private static void Reset(TcpClient client)
    {
        try
        {
            // Without lingering a close is an RST, not a FIN.
            client.Client.LingerState = new LingerOption(true, 0);
            client.Close();
        }
        catch (Exception exception) when (exception is SocketException or ObjectDisposedException)
        {
            // Closed already.
        }
    }

    private async Task AcceptAsync()
    {
        try
        {
            while (!stop.IsCancellationRequested)
            {
                TcpClient client = await listener.AcceptTcpClientAsync(stop.Token);
                _ = ServeAsync(client);
            }
        }
        catch (Exception exception) when (exception is OperationCanceledException or ObjectDisposedException or SocketException)
        {
            // Stopped.
        }
    }

    private async Task ServeAsync(TcpClient client)
    {
        using var server = new TcpClient { NoDelay = true };
        using TcpClient closed = client;
        client.NoDelay = true;
        if (fault is { Kind: FaultKind.Refuse } refused && refused.TryMeet())
        {
            Reset(client);
            return;
        }

        var connection = new Connection();
        try
        {
            await server.ConnectAsync(IPAddress.Loopback, serverPort, stop.Token);
            lock (gate)
            {
                open.Add(connection);
            }

            Task up = PumpAsync(connection, client, server, isUp: true);
            Task down = PumpAsync(connection, server, client, isUp: false);
            await Task.WhenAll(up, down);
        }
        catch (Exception exception) when (exception is IOException or SocketException or ObjectDisposedException or OperationCanceledException or InvalidOperationException)
        {
            // One side went away; so does the other.
        }
        finally
        {
            lock (gate)
            {
                open.Remove(connection);
            }

            Reset(client);
            Reset(server);
        }
    }

    private async Task PumpAsync(Connection connection, TcpClient from, TcpClient to, bool isUp)
    {
        byte[] buffer = new byte[1 << 16];
        NetworkStream source = from.GetStream();
        NetworkStream target = to.GetStream();
        try
        {
            while (await source.ReadAsync(buffer, stop.Token) is > 0 and int read)
            {
                if (isUp)
                {
                    Interlocked.Add(ref bytesUp, read);
                }

                await PassAsync(connection, buffer.AsMemory(0, read), from, to, isUp);
            }

            // The sender has nothing more; the answer may still come.
            to.Client.Shutdown(SocketShutdown.Send);
        }
        catch
        {
            Reset(from);
            Reset(to);
            throw;
        }

        async Task PassAsync(Connection connection, Memory<byte> bytes, TcpClient from, TcpClient to, bool isUp)
        {
            Fault? met = fault;
            long before = connection.Count(isUp, bytes.Length);
            if (met is null || met.IsOfUp != isUp || before + bytes.Length <= met.After || !IsThere(met, bytes) || !met.Concerns(bytes.Span) || (met.Kind == FaultKind.Slow ? !connection.Slowed(met) : !met.TryMeet()))
            {
                await target.WriteAsync(bytes, stop.Token);
                return;
            }

            int kept = (int)Math.Clamp(met.After - before, 0, bytes.Length - 1);
            switch (met.Kind)
            {
                case FaultKind.FlipUp or FaultKind.FlipDown:
                    bytes.Span[kept] ^= 0x55;
                    break;
                case FaultKind.Slow:
                    await Task.Delay(TimeSpan.FromSeconds((double)bytes.Length / met.BytesPerSecond), stop.Token);
                    break;
                case FaultKind.Answer:
                    await AnswerAsync(from, met);
                    throw new IOException("answered here");
                case FaultKind.LoseAnswer:
                    throw new IOException("the answer is lost");
                default:
                    await target.WriteAsync(bytes[..kept], stop.Token);
                    await (met.Kind switch
                    {
                        FaultKind.HoldUp => met.Released.WaitAsync(stop.Token),
                        FaultKind.StallUp or FaultKind.StallDown => Task.Delay(Timeout.Infinite, stop.Token),
                        _ => throw new IOException("cut here"),
                    });
                    bytes = bytes[kept..];
                    break;
            }

            await target.WriteAsync(bytes, stop.Token);
        }
    }

    // Before the answer proper a server may say that the content is to be sent.
    private static bool IsThere(Fault fault, Memory<byte> bytes) => fault.Kind != FaultKind.LoseAnswer || !bytes.Span.StartsWith("HTTP/1.1 100"u8) || bytes.Span.IndexOf("\r\n\r\nHTTP/1.1 "u8) >= 0;

    private async Task AnswerAsync(TcpClient client, Fault answer)
    {
        string body = $"<?xml version=\"1.0\"?><Error><Code>{answer.Code}</Code><Message>Said by the proxy.</Message></Error>";
        NetworkStream stream = client.GetStream();
        await stream.WriteAsync(
            Encoding.ASCII.GetBytes($"HTTP/1.1 {answer.Status} Error\r\nContent-Type: application/xml\r\nContent-Length: {body.Length}\r\nConnection: close\r\n\r\n{body}"),
            stop.Token);

        // A reset would take the answer away from a client that is still sending.
        client.Client.Shutdown(SocketShutdown.Send);
        byte[] rest = new byte[1 << 16];
        while (await stream.ReadAsync(rest, stop.Token) > 0)
        {
        }
    }

    private sealed class Connection
    {
        private long up;
        private long down;
        private Fault? slowed;

        public void CountAnew()
        {
            Interlocked.Exchange(ref up, 0);
            Interlocked.Exchange(ref down, 0);
        }

        /// <summary>Counts bytes; returns how many there were before.</summary>
        public long Count(bool isUp, int bytes) => Interlocked.Add(ref isUp ? ref up : ref down, bytes) - bytes;

        /// <summary>A slow connection stays slow.</summary>
        public bool Slowed(Fault fault)
        {
            if (slowed != fault && fault.TryMeet())
            {
                slowed = fault;
            }

            return slowed == fault;
        }
    }
}
