using System.Globalization;
using System.Runtime.InteropServices;

namespace LoraTrainer.Training.Interruptions;

/// <summary>
/// Signals that schedulers send before they end a job, besides SIGTERM: SIGUSR1 and SIGUSR2 (sbatch --signal=USR1@120) and SIGHUP (the terminal is
/// gone). A signal that the parent process set to be ignored stays ignored, as nohup wants it.
/// </summary>
internal sealed class SchedulerSignals : IDisposable
{
    private const int Hangup = 1;

    private readonly List<PosixSignalRegistration> registrations = [];

    /// <param name="received">Is told the name, on a thread of the runtime.</param>
    public SchedulerSignals(Action<string> received)
    {
        ulong ignored = OperatingSystem.IsLinux() ? IgnoredOf(StatusOfProcess()) : 0;
        foreach ((string name, int number) in Numbers)
        {
            if ((ignored >> (number - 1) & 1) == 0)
            {
                // The enumeration has negative members for some signals, SIGHUP among them, and takes the system's numbers for all others.
                PosixSignal signal = number == Hangup ? PosixSignal.SIGHUP : (PosixSignal)number;
                registrations.Add(PosixSignalRegistration.Create(signal, context =>
                {
                    context.Cancel = true;
                    received(name);
                }));
            }
        }
    }

    private static (string Name, int Number)[] Numbers =>
        OperatingSystem.IsLinux() ? [("SIGUSR1", 10), ("SIGUSR2", 12), ("SIGHUP", Hangup)]
        : OperatingSystem.IsMacOS() ? [("SIGUSR1", 30), ("SIGUSR2", 31), ("SIGHUP", Hangup)]
        : [];

    public void Dispose() => registrations.ForEach(registration => registration.Dispose());

    /// <summary>The mask of ignored signals in a /proc status, bit 0 for signal 1.</summary>
    internal static ulong IgnoredOf(string status)
    {
        string? line = status.Split('\n').FirstOrDefault(line => line.StartsWith("SigIgn:", StringComparison.Ordinal));
        return line is not null && ulong.TryParse(line.AsSpan(7).Trim(), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out ulong mask) ? mask : 0;
    }

    private static string StatusOfProcess()
    {
        try
        {
            return File.ReadAllText("/proc/self/status");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return "";
        }
    }
}
