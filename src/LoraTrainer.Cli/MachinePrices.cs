using LoraTrainer.Costs;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Costs.Prices;
using LoraTrainer.Training.Interruptions;

namespace LoraTrainer.Cli;

/// <summary>What the machine under a run costs, for runs that do not say it themselves.</summary>
internal static class MachinePrices
{
    /// <summary>The price that the user's list or the shipped one has of a machine; null where they have none. A list that cannot be read is told and has none.</summary>
    /// <param name="machine">Which one.</param>
    /// <param name="gpu">Its GPU, as the driver calls it.</param>
    /// <param name="warn">Is told.</param>
    public static AttemptRate? RateOf(MachineIdentity machine, string gpu, Action<string> warn)
    {
        try
        {
            // Price lists have names of their own for GPUs.
            string listed = gpu.Length > 0 && GpuTable.Load(UserFiles.Gpus(null)).OfDriver(gpu) is { } known ? known.Name : string.Empty;
            return PriceTable.Load(UserFiles.Prices(null)).Find(machine.Provider, machine.InstanceType, listed, machine.Region, machine.IsSpot) is { } price
                ? new AttemptRate(price.Amount.Amount, price.Amount.Currency, price.Per == PriceUnit.Gpu ? RatePer.Gpu : RatePer.Machine) { Source = price.Source, AsOf = price.AsOf, Billing = price.Billing }
                : null;
        }
        catch (Exception exception) when (exception is CsvFormatException or IOException or UnauthorizedAccessException)
        {
            warn($"The prices cannot be read, so the price of this machine is not known: {exception.Message}");
            return null;
        }
    }
}
