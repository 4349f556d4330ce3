using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;
using System.Text;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>
/// The least that passes for an S3 server: it puts, gets and deletes small objects and heeds no condition, as some servers do. Not a place to prove that
/// anything works; only what is said where such a server is used.
/// </summary>
internal sealed class SimpleS3 : IAsyncDisposable
{
    private readonly HttpListener listener = new();
    private readonly ConcurrentDictionary<string, (byte[] Content, Dictionary<string, string> Marks)> objects = new();
    private readonly Task serving;

    public SimpleS3()
    {
        using (var free = new TcpListener(IPAddress.Loopback, 0))
        {
            free.Start();
            Port = ((IPEndPoint)free.LocalEndpoint).Port;
        }

        listener.Prefixes.Add($"http://127.0.0.1:{Port}/");
        listener.Start();
        serving = ServeAsync();
    }

    public int Port { get; }

    public ICollection<string> Keys => objects.Keys;

    public async ValueTask DisposeAsync()
    {
        listener.Close();
        await serving;
    }

    private async Task ServeAsync()
    {
        try
        {
            while (true)
            {
                HttpListenerContext context = await listener.GetContextAsync();
                await AnswerAsync(context.Request, context.Response);
                context.Response.Close();
            }
        }
        catch (Exception exception) when (exception is HttpListenerException or ObjectDisposedException)
        {
            // Closed.
        }
    }

    private async Task AnswerAsync(HttpListenerRequest request, HttpListenerResponse response)
    {
        string key = request.Url!.AbsolutePath;
        bool isList = request.QueryString["list-type"] is not null;
        if (request.HttpMethod == "PUT")
        {
            using var body = new MemoryStream();
            await request.InputStream.CopyToAsync(body);
            Dictionary<string, string> marks = request.Headers.AllKeys.OfType<string>().Where(name => name.StartsWith("x-amz-meta-", StringComparison.OrdinalIgnoreCase)).ToDictionary(name => name, name => request.Headers[name]!);
            objects[key] = (Unframed(request, body.ToArray()), marks);
            response.Headers["ETag"] = Tag(objects[key].Content);
        }
        else if (request.HttpMethod == "DELETE")
        {
            objects.TryRemove(key, out _);
            response.StatusCode = 204;
        }
        else if (isList)
        {
            await response.OutputStream.WriteAsync("<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"u8.ToArray());
        }
        else if (objects.TryGetValue(key, out (byte[] Content, Dictionary<string, string> Marks) found))
        {
            response.Headers["ETag"] = Tag(found.Content);
            foreach ((string name, string value) in found.Marks)
            {
                response.Headers[name] = value;
            }

            if (request.HttpMethod == "GET")
            {
                response.ContentLength64 = found.Content.Length;
                await response.OutputStream.WriteAsync(found.Content);
            }
        }
        else
        {
            response.StatusCode = 404;
            if (request.HttpMethod == "GET")
            {
                await response.OutputStream.WriteAsync("<Error><Code>NoSuchKey</Code></Error>"u8.ToArray());
            }
        }
    }

    /// <summary>A body that was sent in signed chunks, without their heads.</summary>
    private static byte[] Unframed(HttpListenerRequest request, byte[] body)
    {
        if (request.Headers["x-amz-decoded-content-length"] is null)
        {
            return body;
        }

        using var content = new MemoryStream();
        for (int at = 0; ;)
        {
            int end = body.AsSpan(at).IndexOf("\r\n"u8);
            int length = Convert.ToInt32(Encoding.ASCII.GetString(body, at, end).Split(';')[0], 16);
            if (length == 0)
            {
                return content.ToArray();
            }

            content.Write(body, at + end + 2, length);
            at += end + 2 + length + 2;
        }
    }

    // Any name of the content will do.
    private static string Tag(byte[] content) => $"\"{Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(content))[..32]}\"";
}
