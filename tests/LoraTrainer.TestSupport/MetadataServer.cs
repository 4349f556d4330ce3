using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;
using System.Text;

namespace LoraTrainer.TestSupport;

/// <summary>One request as it came over the wire. Names of headers in lower case.</summary>
public sealed record MetadataRequest(string Method, string Target, IReadOnlyDictionary<string, string> Headers, string Body)
{
    public string? Header(string name) => Headers.GetValueOrDefault(name.ToLowerInvariant());
}

/// <summary>What is sent back; a status of 0 sends <see cref="Body"/> as it is, in the place of an HTTP answer.</summary>
public sealed record MetadataReply(int Status, string Body = "", params (string Name, string Value)[] Headers);

/// <summary>An HTTP server on a loopback socket that answers as a test says; an answer that never comes is a server that hangs.</summary>
public sealed class MetadataServer : IAsyncDisposable
{
    private readonly TcpListener listener = new(IPAddress.Loopback, 0);
    private readonly CancellationTokenSource ending = new();
    private readonly Func<MetadataRequest, CancellationToken, Task<MetadataReply>> answer;
    private readonly Task accepting;

    public MetadataServer(Func<MetadataRequest, MetadataReply> answer)
        : this((request, _) => Task.FromResult(answer(request)))
    {
    }

    public MetadataServer(Func<MetadataRequest, CancellationToken, Task<MetadataReply>> answer)
    {
        this.answer = answer;
        listener.Start();
        accepting = Task.Run(AcceptAsync);
    }

    public string Address => $"http://127.0.0.1:{((IPEndPoint)listener.LocalEndpoint).Port}";

    public ConcurrentQueue<MetadataRequest> Requests { get; } = [];

    public static Func<MetadataRequest, CancellationToken, Task<MetadataReply>> Hang { get; } = async (_, ended) =>
    {
        await Task.Delay(Timeout.Infinite, ended);
        return new MetadataReply(500);
    };

    public async ValueTask DisposeAsync()
    {
        // Stopped when nothing waits for a connection any more, or the next wait would find it stopped.
        await ending.CancelAsync();
        await accepting;
        listener.Stop();
        ending.Dispose();
    }

    private async Task AcceptAsync()
    {
        List<Task> served = [];
        try
        {
            while (!ending.IsCancellationRequested)
            {
                served.Add(ServeAsync(await listener.AcceptTcpClientAsync(ending.Token)));
            }
        }
        catch (Exception exception) when (exception is OperationCanceledException or SocketException)
        {
        }

        await Task.WhenAll(served);
    }

    private async Task ServeAsync(TcpClient client)
    {
        using TcpClient closed = client;
        try
        {
            NetworkStream stream = client.GetStream();
            while (await ReadAsync(stream) is { } request)
            {
                Requests.Enqueue(request);
                MetadataReply reply = await answer(request, ending.Token);
                string head = $"HTTP/1.1 {reply.Status} X\r\nContent-Length: {Encoding.UTF8.GetByteCount(reply.Body)}\r\n{string.Concat(reply.Headers.Select(header => $"{header.Name}: {header.Value}\r\n"))}\r\n";
                await stream.WriteAsync(Encoding.UTF8.GetBytes(reply.Status == 0 ? reply.Body : head + reply.Body), ending.Token);
                if (reply.Status == 0)
                {
                    return;
                }
            }
        }
        catch (Exception exception) when (exception is OperationCanceledException or IOException)
        {
        }
    }

    private async Task<MetadataRequest?> ReadAsync(NetworkStream stream)
    {
        StringBuilder text = new();
        byte[] one = new byte[1];
        while (!text.ToString().EndsWith("\r\n\r\n", StringComparison.Ordinal))
        {
            if (await stream.ReadAsync(one, ending.Token) == 0)
            {
                return null;
            }

            text.Append((char)one[0]);
        }

        string[] lines = text.ToString().Split("\r\n", StringSplitOptions.RemoveEmptyEntries);
        string[] start = lines[0].Split(' ');
        Dictionary<string, string> headers = lines[1..].Select(line => line.Split(':', 2)).ToDictionary(pair => pair[0].ToLowerInvariant(), pair => pair[1].Trim());
        byte[] body = new byte[int.Parse(headers.GetValueOrDefault("content-length", "0"), System.Globalization.CultureInfo.InvariantCulture)];
        await stream.ReadExactlyAsync(body, ending.Token);
        return new MetadataRequest(start[0], start[1], headers, Encoding.UTF8.GetString(body));
    }
}
