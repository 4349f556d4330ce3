using System.Text;
using System.Text.RegularExpressions;

namespace LoraTrainer.Storage;

/// <summary>
/// A path with wildcards, parts separated by '/': <c>*</c> any characters of one part, <c>?</c> one of them, <c>[a-c]</c> one of a set (<c>[!a]</c>: one of the others),
/// <c>**</c> any number of parts. A wildcard at the start of a part does not match a leading dot. Matching takes time linear in the length of the path.
/// </summary>
public sealed class GlobPattern
{
    private static readonly char[] Wildcards = ['*', '?', '['];

    private readonly Regex regex;

    public GlobPattern(string pattern)
    {
        Pattern = pattern;
        regex = new Regex(ToRegex(pattern), RegexOptions.NonBacktracking | RegexOptions.CultureInvariant | RegexOptions.Singleline);
        string[] parts = pattern.Split('/');
        int fixedParts = parts.TakeWhile(part => part.IndexOfAny(Wildcards) < 0).Count();
        FixedPart = string.Join('/', parts.Take(Math.Min(fixedParts, parts.Length - 1)));
        Depth = parts.Contains("**") ? int.MaxValue : parts.Length - Math.Min(fixedParts, parts.Length - 1);
    }

    public string Pattern { get; }

    /// <summary>The folders before the first wildcard, without a '/' at the end; may be empty.</summary>
    public string FixedPart { get; }

    /// <summary>How many levels below <see cref="FixedPart"/> a match can lie: 1 for files right in it.</summary>
    public int Depth { get; }

    public static bool HasWildcards(string path) => path.IndexOfAny(Wildcards) >= 0;

    public bool IsMatch(string path) => regex.IsMatch(path);

    private static string ToRegex(string pattern)
    {
        var text = new StringBuilder("^");
        string[] parts = pattern.Split('/');
        for (int i = 0; i < parts.Length; i++)
        {
            bool isLast = i == parts.Length - 1;
            if (parts[i] == "**")
            {
                text.Append(isLast ? "(?:[^./][^/]*/)*[^./][^/]*" : "(?:[^./][^/]*/)*");
                continue;
            }

            AppendPart(text, parts[i]);
            text.Append(isLast ? "" : "/");
        }

        return text.Append('$').ToString();
    }

    private static void AppendPart(StringBuilder text, string part)
    {
        for (int i = 0; i < part.Length; i++)
        {
            int close = part[i] == '[' ? part.IndexOf(']', Math.Min(part.Length, i + (i + 1 < part.Length && part[i + 1] == '!' ? 3 : 2))) : -1;
            text.Append(part[i] switch
            {
                '*' => i == 0 ? "(?:[^./][^/]*)?" : "[^/]*",
                '?' => i == 0 ? "[^./]" : "[^/]",
                '[' when close > 0 => Set(part[(i + 1)..close]),
                _ => Regex.Escape(part[i].ToString()),
            });
            i = close > 0 ? close : i;
        }
    }

    private static string Set(string members)
    {
        bool others = members[0] == '!';
        string escaped = string.Concat(members[(others ? 1 : 0)..].Select(c => c == '-' ? "-" : c is ']' or '\\' or '^' or '[' or '&' or '~' ? $"\\{c}" : c.ToString()));
        return others ? $"[^/{escaped}]" : $"[{escaped}]";
    }
}
