using System.Globalization;

namespace LoraTrainer.Training;

/// <summary>Resident memory of this process, from /proc/self/status; 0 where there is no such file.</summary>
internal static class ProcessMemory
{
    private const string StatusFile = "/proc/self/status";

    /// <summary>VmHWM: the most that was resident at any time.</summary>
    public static long PeakBytes() => Read("VmHWM:");

    /// <summary>VmRSS: what is resident now.</summary>
    public static long ResidentBytes() => Read("VmRSS:");

    private static long Read(string field)
    {
        if (!File.Exists(StatusFile))
        {
            return 0;
        }

        foreach (string line in File.ReadLines(StatusFile))
        {
            if (line.StartsWith(field, StringComparison.Ordinal))
            {
                // "VmRSS:	  123456 kB"
                ReadOnlySpan<char> number = line.AsSpan(field.Length).Trim();
                return long.Parse(number[..number.IndexOf(' ')], NumberStyles.Integer, CultureInfo.InvariantCulture) * 1024;
            }
        }

        return 0;
    }
}
