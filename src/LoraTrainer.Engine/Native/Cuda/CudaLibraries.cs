using System.Globalization;
using System.Reflection;
using System.Runtime.InteropServices;

namespace LoraTrainer.Engine.Native.Cuda;

/// <summary>The libraries that a run on a GPU needs.</summary>
internal enum CudaLibrary
{
    /// <summary>libcuda: comes with the NVIDIA driver.</summary>
    Driver,

    /// <summary>libnvrtc: compiles the kernels on the machine they run on.</summary>
    Compiler,

    /// <summary>libcublasLt: matrix products.</summary>
    Blas,
}

/// <summary>One file that was tried, and why it was not taken.</summary>
internal sealed record LibraryAttempt(string Path, string Error);

/// <summary>How the search for a library ended.</summary>
/// <param name="Library">What was looked for.</param>
/// <param name="Handle">0 where nothing was found.</param>
/// <param name="Path">The file that was taken, or null.</param>
/// <param name="Attempts">What was tried before that, in order.</param>
internal sealed record LibrarySearch(CudaLibrary Library, nint Handle, string? Path, IReadOnlyList<LibraryAttempt> Attempts)
{
    public bool Found => Handle != 0;

    /// <summary>One clause for people: the names and the number of places that were tried.</summary>
    public string Tried()
    {
        string[] names = [.. Attempts.Select(attempt => System.IO.Path.GetFileName(attempt.Path)).Distinct(StringComparer.Ordinal)];
        int folders = Attempts.Select(attempt => System.IO.Path.GetDirectoryName(attempt.Path)).Where(folder => !string.IsNullOrEmpty(folder)).Distinct(StringComparer.Ordinal).Count();
        string? broken = Attempts.FirstOrDefault(attempt => attempt.Error != CudaLibraries.NoSuchFile && !attempt.Error.Contains("No such file or directory", StringComparison.Ordinal)) is { } attempt
            ? $"; {attempt.Path} is there but cannot be loaded: {attempt.Error}"
            : null;
        return string.Create(CultureInfo.InvariantCulture, $"tried {string.Join(", ", names)} through the system's loader and in {folders} folder{(folders == 1 ? "" : "s")}{broken}");
    }
}

/// <summary>
/// The one resolver of this assembly: maps the names in the bindings to files. The search of each library is done once in a process and
/// remembered with every attempt, for error texts and for <c>doctor</c>.
/// </summary>
internal static class CudaLibraries
{
    internal const string DriverName = "cuda";
    internal const string BlasName = "cublasLt";

    /// <summary>The <see cref="LibraryAttempt.Error"/> of a file that is not there.</summary>
    internal const string NoSuchFile = "no such file";

    private const string FolderVariable = "LT_CUDA_DIR";

    private static readonly Lock Gate = new();
    private static readonly LibrarySearch?[] Searches = new LibrarySearch?[Enum.GetValues<CudaLibrary>().Length];
    private static string? folder = Environment.GetEnvironmentVariable(FolderVariable) is { Length: > 0 } given ? given : null;

    static CudaLibraries() => NativeLibrary.SetDllImportResolver(typeof(CudaLibraries).Assembly, Resolve);

    /// <summary>The folder that is looked into before all others: LT_CUDA_DIR, unless something else is set here before the first search.</summary>
    /// <exception cref="InvalidOperationException">A library was looked for already; a process has one of each.</exception>
    internal static string? Folder
    {
        get => folder;
        set
        {
            lock (Gate)
            {
                if (Searches.Any(search => search is not null) && value != folder)
                {
                    throw new InvalidOperationException("The CUDA libraries of this process were looked for already; their folder has to be set before.");
                }

                folder = value;
            }
        }
    }

    /// <summary>Finds and loads the library the first time; says how that ended.</summary>
    public static LibrarySearch Find(CudaLibrary library)
    {
        lock (Gate)
        {
            return Searches[(int)library] ??= Search(library, Candidates(library, folder, library == CudaLibrary.Driver ? 0 : DriverMajor(), Environment.GetEnvironmentVariable));
        }
    }

    /// <summary>True if the library was found and has a function of that name.</summary>
    public static bool Exports(CudaLibrary library, string function) => Find(library) is { Found: true } search && NativeLibrary.TryGetExport(search.Handle, function, out _);

    /// <summary>The files to try, in order. A name without a folder is left to the system's loader.</summary>
    /// <param name="library">What is looked for.</param>
    /// <param name="folder">The folder that the user named, or null.</param>
    /// <param name="driverMajor">The CUDA version that the driver serves, 0 if unknown. Libraries newer than it are tried last: what they make does not load.</param>
    /// <param name="environment">Reads an environment variable.</param>
    internal static IEnumerable<string> Candidates(CudaLibrary library, string? folder, int driverMajor, Func<string, string?> environment)
    {
        (string Name, int Major)[] names = library switch
        {
            CudaLibrary.Driver => [("libcuda.so.1", 0)],
            CudaLibrary.Compiler => [("libnvrtc.so.13", 13), ("libnvrtc.so.12", 12), ("libnvrtc.so", 0)],
            _ => [("libcublasLt.so.13", 13), ("libcublasLt.so.12", 12), ("libcublasLt.so", 0)],
        };
        bool Fits((string Name, int Major) name) => driverMajor == 0 || name.Major <= driverMajor;
        string[] fitting = [.. names.Where(Fits).Concat(names.Where(name => !Fits(name))).Select(name => name.Name)];
        string[] newer = [.. names.Where(name => !Fits(name)).Select(name => name.Name)];

        if (folder is not null)
        {
            foreach (string name in fitting)
            {
                yield return Path.GetFullPath(Path.Combine(folder, name));
            }
        }

        string[] folders = [.. Folders(library, environment).Distinct(StringComparer.Ordinal)];
        foreach (string[] group in (string[][])[[.. fitting.Except(newer)], newer])
        {
            foreach (string name in group)
            {
                yield return name;
            }

            foreach (string place in folders)
            {
                foreach (string name in group)
                {
                    yield return Path.Combine(place, name);
                }
            }
        }
    }

    /// <summary>Loads the first candidate that can be loaded.</summary>
    internal static LibrarySearch Search(CudaLibrary library, IEnumerable<string> candidates)
    {
        var attempts = new List<LibraryAttempt>();
        foreach (string candidate in candidates)
        {
            if (Path.IsPathRooted(candidate) && !File.Exists(candidate))
            {
                attempts.Add(new LibraryAttempt(candidate, NoSuchFile));
                continue;
            }

            try
            {
                nint handle = NativeLibrary.Load(candidate);
                if (NativeLibrary.TryGetExport(handle, ProofOf(library), out nint function))
                {
                    return new LibrarySearch(library, handle, MappedFile(function) ?? candidate, attempts);
                }

                NativeLibrary.Free(handle);
                attempts.Add(new LibraryAttempt(candidate, $"it has no function {ProofOf(library)}"));
            }
            catch (Exception exception) when (exception is DllNotFoundException or BadImageFormatException)
            {
                attempts.Add(new LibraryAttempt(candidate, LoaderMessage(candidate, exception.Message)));
            }
        }

        return new LibrarySearch(library, 0, null, attempts);
    }

    private static nint Resolve(string name, Assembly assembly, DllImportSearchPath? searchPath) => name switch
    {
        DriverName => Find(CudaLibrary.Driver).Handle,
        BlasName => Find(CudaLibrary.Blas).Handle,
        _ => 0,
    };

    /// <summary>A function that the library has if it is what its name says.</summary>
    private static string ProofOf(CudaLibrary library) => library switch
    {
        CudaLibrary.Driver => "cuInit",
        CudaLibrary.Compiler => "nvrtcVersion",
        _ => "cublasLtCreate",
    };

    private static int DriverMajor()
    {
        LibrarySearch driver = Searches[(int)CudaLibrary.Driver] ??= Search(CudaLibrary.Driver, Candidates(CudaLibrary.Driver, folder, 0, Environment.GetEnvironmentVariable));
        return driver.Found && CudaDriver.cuDriverGetVersion(out int version) == CudaStatus.Success ? version / 1000 : 0;
    }

    private static IEnumerable<string> Folders(CudaLibrary library, Func<string, string?> environment)
    {
        if (library == CudaLibrary.Driver)
        {
            // Where containers, WSL and distributions put the driver when the loader does not know.
            return ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib", "/usr/lib/x86_64-linux-gnu/nvidia/current", "/run/opengl-driver/lib"];
        }

        IEnumerable<string> toolkits = Subfolders("/usr/local", "cuda*").OrderByDescending(path => path, StringComparer.Ordinal)
            .SelectMany(path => (string[])[Path.Combine(path, "lib64"), Path.Combine(path, "targets/x86_64-linux/lib")]);
        return
        [
            .. toolkits, "/usr/lib/x86_64-linux-gnu", "/usr/lib64",
            .. PythonFolders(environment), Path.Combine(AppContext.BaseDirectory, "nvidia-libs"),
        ];
    }

    /// <summary>The library folders of NVIDIA's Python packages, in the environment that is active first.</summary>
    private static IEnumerable<string> PythonFolders(Func<string, string?> environment)
    {
        var prefixes = new List<string>();
        foreach (string variable in (string[])["VIRTUAL_ENV", "CONDA_PREFIX"])
        {
            if (environment(variable) is { Length: > 0 } prefix)
            {
                prefixes.Add(prefix);
            }
        }

        foreach (string place in (environment("PATH") ?? "").Split(':', StringSplitOptions.RemoveEmptyEntries))
        {
            if (File.Exists(Path.Combine(place, "python3")) && Path.GetDirectoryName(place) is { Length: > 0 } prefix)
            {
                prefixes.Add(prefix);
            }
        }

        if (environment("HOME") is { Length: > 0 } home)
        {
            prefixes.Add(Path.Combine(home, ".local"));
            prefixes.AddRange(Subfolders(Path.Combine(home, ".pyenv", "versions"), "*"));
        }

        prefixes.AddRange(["/usr/local", "/usr"]);
        foreach (string prefix in prefixes.Distinct(StringComparer.Ordinal))
        {
            // Conda puts libraries into the environment's own lib folder.
            if (prefix == environment("CONDA_PREFIX"))
            {
                yield return Path.Combine(prefix, "lib");
            }

            foreach (string python in Subfolders(Path.Combine(prefix, "lib"), "python3*"))
            {
                foreach (string packages in (string[])["site-packages", "dist-packages"])
                {
                    foreach (string package in Subfolders(Path.Combine(python, packages, "nvidia"), "*"))
                    {
                        yield return Path.Combine(package, "lib");
                    }
                }
            }
        }
    }

    /// <summary>The folders in a folder by pattern, sorted; none where it is missing or closed to this user.</summary>
    private static string[] Subfolders(string folder, string pattern)
    {
        try
        {
            return Directory.Exists(folder) ? [.. Directory.EnumerateDirectories(folder, pattern).Order(StringComparer.Ordinal)] : [];
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return [];
        }
    }

    /// <summary>What the system's loader said, without the advice that the run time puts around it.</summary>
    private static string LoaderMessage(string candidate, string message)
    {
        string[] lines = message.Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);
        string line = lines.Skip(1).FirstOrDefault(line => line.Contains(": ", StringComparison.Ordinal)) ?? lines[^1];
        return line.StartsWith(candidate + ": ", StringComparison.Ordinal) ? line[(candidate.Length + 2)..] : line;
    }

    /// <summary>The file that holds the code at an address: tells where the loader found a name. Null where the system does not say.</summary>
    private static string? MappedFile(nint address)
    {
        try
        {
            foreach (string line in File.ReadLines("/proc/self/maps"))
            {
                // start-end rights offset device inode path
                string[] fields = line.Split(' ', 6, StringSplitOptions.RemoveEmptyEntries);
                string[] range = fields[0].Split('-');
                if (fields.Length == 6 && fields[5].StartsWith('/')
                    && ulong.TryParse(range[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture, out ulong start)
                    && ulong.TryParse(range[1], NumberStyles.HexNumber, CultureInfo.InvariantCulture, out ulong end)
                    && (ulong)address >= start && (ulong)address < end)
                {
                    return fields[5].Trim();
                }
            }
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // A system without this file: the name that was loaded is all there is to say.
        }

        return null;
    }
}
