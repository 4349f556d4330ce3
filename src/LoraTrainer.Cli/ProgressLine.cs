using System.Diagnostics;
using System.Globalization;

namespace LoraTrainer.Cli;

/// <summary>How far a piece of work is: on a terminal one line that is drawn anew, in a pipe a line now and then. Work that is quick says nothing.</summary>
internal sealed class ProgressLine(Terminal terminal, string what)
{
    private static readonly TimeSpan Redraw = TimeSpan.FromMilliseconds(200);
    private static readonly TimeSpan BetweenLines = TimeSpan.FromSeconds(10);

    private readonly long start = Stopwatch.GetTimestamp();
    private TimeSpan drawn;

    /// <summary>Returns at once unless it is time to say something.</summary>
    /// <param name="detail">A word or two about the moment; may be empty.</param>
    /// <param name="fraction">0..1</param>
    public void Tell(string detail, double fraction) => Show(detail, fraction);

    /// <summary>The same for work whose size is not known.</summary>
    public void Tell(string detail) => Show(detail, null);

    private void Show(string detail, double? fraction)
    {
        TimeSpan elapsed = Stopwatch.GetElapsedTime(start);
        if (elapsed - drawn < (terminal.IsInteractive ? Redraw : BetweenLines))
        {
            return;
        }

        drawn = elapsed;
        string left = fraction is > 0 and { } share ? $", {Quantities.Time(elapsed / share - elapsed)} left" : "";
        string done = fraction is { } part ? string.Create(CultureInfo.InvariantCulture, $"{part * 100:0} %{left}{(detail.Length > 0 ? "  " : "")}") : "";
        string line = $"{what}: {done}{detail}";
        if (terminal.IsInteractive)
        {
            terminal.Progress(line);
        }
        else
        {
            terminal.Say(line);
        }
    }
}
