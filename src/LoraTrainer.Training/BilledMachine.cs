using System.Diagnostics;
using System.Globalization;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Interruptions;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training;

/// <summary>The machine of an attempt as it is paid for.</summary>
/// <param name="Identity">Which one.</param>
/// <param name="Gpu">The GPU that the run may use, as its driver calls it; empty where it computes on the CPU.</param>
/// <param name="Rate">What an hour costs; null where nobody knows it.</param>
/// <param name="Since">When its time began to count.</param>
internal sealed record BilledMachine(MachineIdentity Identity, string Gpu, AttemptRate? Rate, DateTimeOffset Since)
{
    /// <summary>This machine, as the configuration, its cloud and a price list have it.</summary>
    /// <param name="config">Of the run.</param>
    /// <param name="identity">What the cloud tells.</param>
    /// <param name="priceOf">What an hour of a machine with such a GPU costs; null: no list.</param>
    /// <param name="billedUntil">Up to when earlier processes have already counted this machine's time since it booted; null: none did.</param>
    /// <param name="observer">Is told what was found.</param>
    /// <param name="time">The clock.</param>
    public static BilledMachine Here(
        TrainingConfig config, MachineIdentity identity, Func<MachineIdentity, string, AttemptRate?>? priceOf, DateTimeOffset? billedUntil, ITrainingObserver observer, TimeProvider time)
    {
        string gpu = config.Device.Choice != DeviceChoice.Cpu && CudaDevice.TryDescribe(out CudaDeviceInfo? info, out _) ? info.Name : string.Empty;
        return new BilledMachine(identity, gpu, RateOf(config.Cost, identity, gpu, priceOf, observer), StartOf(config.Cost, billedUntil, observer, time));
    }

    /// <summary>When the machine's time begins to count for a process, each of its seconds once.</summary>
    /// <param name="boot">When the machine started.</param>
    /// <param name="process">When the process did.</param>
    /// <param name="billedUntil">As in <see cref="Here"/>.</param>
    internal static DateTimeOffset FirstUnbilled(DateTimeOffset boot, DateTimeOffset process, DateTimeOffset? billedUntil)
    {
        DateTimeOffset first = billedUntil is { } until && until > boot ? until : boot;
        return first < process ? first : process;
    }

    private static DateTimeOffset StartOf(CostOptions options, DateTimeOffset? billedUntil, ITrainingObserver observer, TimeProvider time)
    {
        DateTimeOffset process = Process.GetCurrentProcess().StartTime.ToUniversalTime();
        if (options.BillFrom != BillingStart.Boot)
        {
            return process;
        }

        if (MachineTraits.Here.IsContainer)
        {
            observer.OnWarning("cost.bill_from: boot is not possible in a container, whose clock is that of the machine below it: hours count from the start of the program.");
            return process;
        }

        return FirstUnbilled(time.GetUtcNow() - TimeSpan.FromMilliseconds(Environment.TickCount64), process, billedUntil);
    }

    private static AttemptRate? RateOf(CostOptions options, MachineIdentity identity, string gpu, Func<MachineIdentity, string, AttemptRate?>? priceOf, ITrainingObserver observer)
    {
        if (options.Rate is { } given)
        {
            return new AttemptRate(given, options.Currency, options.RatePer == RateUnit.Machine ? RatePer.Machine : RatePer.Gpu) { Source = "cost.rate" };
        }

        if (identity.Provider.Length == 0)
        {
            return null;
        }

        string machine = Words(identity, gpu);
        if (priceOf?.Invoke(identity, gpu) is not { } found)
        {
            observer.OnNotice($"No price of this machine is known ({machine}): its hours are kept. Give cost.rate, or the price later with lora-trainer ledger set-rate.");
            return null;
        }

        string price = string.Create(CultureInfo.InvariantCulture, $"{found.Amount:0.00####} {found.Currency} an hour{(found.Per == RatePer.Gpu ? " and GPU" : "")}, by {found.Source} of {found.AsOf:yyyy-MM-dd}");
        if (found.Currency != options.Currency)
        {
            observer.OnNotice($"The price of this machine is known in another currency than cost.currency, {options.Currency}, and is left out ({machine}: {price}). Give cost.rate.");
            return null;
        }

        observer.OnNotice($"This machine ({machine}) costs {price}. cost.rate replaces it.");
        return found;
    }

    private static string Words(MachineIdentity identity, string gpu) => string.Join(", ", new[]
    {
        $"{identity.Provider} {(identity.InstanceType.Length > 0 ? identity.InstanceType : gpu)}".Trim(),
        identity.Region,
        identity.IsSpot switch
        {
            true => "spot",
            false => "on demand",
            _ => "",
        },
    }.Where(word => word.Length > 0));
}
