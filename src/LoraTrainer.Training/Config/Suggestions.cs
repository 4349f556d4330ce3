namespace LoraTrainer.Training.Config;

/// <summary>Finds the word that was probably meant.</summary>
public static class Suggestions
{
    /// <summary>The nearest candidate, if it is near enough to be a slip of the keyboard; ties go to the first in the alphabet.</summary>
    public static string? Nearest(string word, IEnumerable<string> candidates)
    {
        int limit = Math.Max(1, Math.Min(word.Length, 24) / 4);
        return candidates
            .Select(candidate => (Candidate: candidate, Distance: Distance(word.ToLowerInvariant(), candidate.ToLowerInvariant())))
            .Where(pair => pair.Distance <= limit)
            .OrderBy(pair => pair.Distance)
            .ThenBy(pair => pair.Candidate, StringComparer.Ordinal)
            .Select(pair => pair.Candidate)
            .FirstOrDefault();
    }

    /// <summary>The nearest candidate as a question, or null.</summary>
    internal static string? DidYouMean(string word, IEnumerable<string> candidates) => Nearest(word, candidates) is { } near ? $"Did you mean {near}?" : null;

    /// <summary>Says that the key is unknown, and what was meant: a key of another section with that very name, or the nearest name here.</summary>
    internal static void ReportUnknown(ConfigurationEntry entry, string path, IEnumerable<string> names, IssueCollector issues)
    {
        string inner = path.Length == 0 ? entry.Key : $"{path}.{entry.Key}";
        string? elsewhere = ConfigurationKeys.All.Select(key => key.Path).FirstOrDefault(candidate =>
            candidate.EndsWith("." + entry.Key, StringComparison.Ordinal) || (path.Length > 0 && candidate == entry.Key));
        string? meant = Nearest(entry.Key, names) ?? elsewhere;
        string next = meant is not null ? $"Did you mean {meant}?"
            : path.Length == 0 ? "docs/configuration.md lists all keys."
            : $"Known here: {string.Join(", ", names)}.";
        issues.Wrong(inner, entry.Location, $"Unknown key {inner} ({entry.Location}). {next}");
    }

    /// <summary>Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.</summary>
    private static int Distance(string first, string second)
    {
        if (Math.Abs(first.Length - second.Length) > 6 || first.Length > 64)
        {
            return int.MaxValue;
        }

        int[,] cost = new int[first.Length + 1, second.Length + 1];
        for (int i = 0; i <= first.Length; i++)
        {
            for (int j = 0; j <= second.Length; j++)
            {
                if (i == 0 || j == 0)
                {
                    cost[i, j] = i + j;
                    continue;
                }

                int replace = cost[i - 1, j - 1] + (first[i - 1] == second[j - 1] ? 0 : 1);
                cost[i, j] = Math.Min(replace, 1 + Math.Min(cost[i - 1, j], cost[i, j - 1]));
                if (i > 1 && j > 1 && first[i - 1] == second[j - 2] && first[i - 2] == second[j - 1])
                {
                    cost[i, j] = Math.Min(cost[i, j], cost[i - 2, j - 2] + 1);
                }
            }
        }

        return cost[first.Length, second.Length];
    }
}
