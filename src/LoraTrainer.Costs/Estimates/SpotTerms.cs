namespace LoraTrainer.Costs.Estimates;

/// <summary>What a machine that can be taken away costs in time: saves, lost work and starting again, as a share of the time without interruptions.</summary>
/// <param name="SaveShare">Saves and lost work: save / interval + interval / (2 M), with M the mean time between interruptions.</param>
/// <param name="MeanHours">M.</param>
/// <param name="RestartSeconds">From the interruption until the run goes on, as far as it is paid for: another machine starts, loads and quantizes.</param>
public readonly record struct SpotTerms(double SaveShare, double MeanHours, double RestartSeconds)
{
    /// <summary>The share that comes on top.</summary>
    public double Overhead => SaveShare + (RestartSeconds / 3600 / MeanHours);

    /// <summary>Interruptions that a run of so many hours, with the overhead, will meet on average.</summary>
    public double Interruptions(double hours) => hours * (1 + Overhead) / MeanHours;
}
