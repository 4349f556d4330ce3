using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Config;

/// <summary>How a device is written: in a config under <c>device</c>, and on a command line behind <c>--device</c>.</summary>
public static class DeviceWords
{
    /// <summary>The words, in the order in which they are shown.</summary>
    internal static readonly (string Word, DeviceChoice Meaning)[] All = [("auto", DeviceChoice.Auto), ("cpu", DeviceChoice.Cpu), ("cuda", DeviceChoice.Cuda)];

    /// <summary>The choice behind a word.</summary>
    /// <param name="word">What the user wrote.</param>
    /// <param name="option">Where, for the sentence.</param>
    /// <exception cref="TrainingSetupException">It is none of the words.</exception>
    public static DeviceChoice Parse(string word, string option)
    {
        foreach ((string known, DeviceChoice meaning) in All)
        {
            if (known == word)
            {
                return meaning;
            }
        }

        IEnumerable<string> words = All.Select(choice => choice.Word);
        throw new TrainingSetupException($"{option} must be one of {string.Join(", ", words)}, got '{word}'. {AdviceOn(word) ?? Suggestions.DidYouMean(word, words)}".TrimEnd());
    }

    /// <summary>For the words of other programs: what they are here, or null.</summary>
    internal static string? AdviceOn(string word)
    {
        string[] parts = word.ToLowerInvariant().Split(':');
        return parts[0] is not ("gpu" or "cuda" or "nvidia") ? null
            : parts.Length > 1 ? "Write cuda; the environment variable CUDA_VISIBLE_DEVICES chooses the GPU."
            : "Did you mean cuda?";
    }
}
