using System.Reflection;

namespace LoraTrainer.Engine.Devices;

/// <summary>Kernel sources and the headers they may include, by file name.</summary>
internal sealed class KernelSources
{
    private const string Prefix = "kernels/";

    private static readonly Lazy<KernelSources> OfTheProgram = new(ReadEmbedded);

    private readonly Dictionary<string, string> files;

    public KernelSources(IEnumerable<KeyValuePair<string, string>> files)
    {
        this.files = new Dictionary<string, string>(files, StringComparer.Ordinal);
        Headers = [.. this.files.Where(file => file.Key.EndsWith(".cuh", StringComparison.Ordinal)).OrderBy(file => file.Key, StringComparer.Ordinal).Select(file => (file.Key, file.Value))];
    }

    /// <summary>The folder kernels/ of the repository, as it was when the program was built.</summary>
    public static KernelSources Embedded => OfTheProgram.Value;

    /// <summary>All headers, sorted.</summary>
    public IReadOnlyList<(string Name, string Text)> Headers { get; }

    public IEnumerable<string> Files => files.Keys.Order(StringComparer.Ordinal);

    public string Read(string file) => files.TryGetValue(file, out string? text)
        ? text
        : throw new FileNotFoundException($"There is no kernel source {file}; there are: {string.Join(", ", Files)}.");

    private static KernelSources ReadEmbedded()
    {
        Assembly assembly = typeof(KernelSources).Assembly;
        var files = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (string name in assembly.GetManifestResourceNames().Where(name => name.StartsWith(Prefix, StringComparison.Ordinal)))
        {
            using var reader = new StreamReader(assembly.GetManifestResourceStream(name)!);
            files.Add(name[Prefix.Length..], reader.ReadToEnd());
        }

        return new KernelSources(files);
    }
}
