using System.Globalization;
using System.Text;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>C's strftime with English names, for the templates that write today's date into a system text.</summary>
internal static class StrfTime
{
    public static string Format(string format, DateTime time)
    {
        var result = new StringBuilder();
        for (int i = 0; i < format.Length; i++)
        {
            if (format[i] != '%' || i + 1 == format.Length)
            {
                result.Append(format[i]);
                continue;
            }

            int begin = i++;
            bool isBare = format[i] == '-' && i + 1 < format.Length;
            i += isBare ? 1 : 0;
            string? part = Part(format[i], time);
            result.Append(part is null ? format[begin..(i + 1)] : isBare ? Bare(part) : part);
        }

        return result.ToString();
    }

    /// <summary>Null for a letter without a meaning, which stays as it is.</summary>
    private static string? Part(char letter, DateTime time) => letter switch
    {
        'Y' => Written(time, "yyyy"),
        'y' => Written(time, "yy"),
        'C' => Digits(time.Year / 100, 2),
        'm' => Written(time, "MM"),
        'B' => Written(time, "MMMM"),
        'b' or 'h' => Written(time, "MMM"),
        'd' => Written(time, "dd"),
        'e' => Digits(time.Day, 2, ' '),
        'j' => Digits(time.DayOfYear, 3),
        'A' => Written(time, "dddd"),
        'a' => Written(time, "ddd"),
        'u' => Digits(time.DayOfWeek == DayOfWeek.Sunday ? 7 : (int)time.DayOfWeek, 1),
        'w' => Digits((int)time.DayOfWeek, 1),
        'U' => Digits((time.DayOfYear + 6 - (int)time.DayOfWeek) / 7, 2),
        'W' => Digits((time.DayOfYear + 6 - (((int)time.DayOfWeek + 6) % 7)) / 7, 2),
        'V' => Digits(ISOWeek.GetWeekOfYear(time), 2),
        'G' => Digits(ISOWeek.GetYear(time), 4),
        'H' => Written(time, "HH"),
        'I' => Written(time, "hh"),
        'k' => Digits(time.Hour, 2, ' '),
        'l' => Digits(((time.Hour + 11) % 12) + 1, 2, ' '),
        'M' => Written(time, "mm"),
        'S' => Written(time, "ss"),
        'f' => Written(time, "ffffff"),
        'p' => time.Hour < 12 ? "AM" : "PM",
        'P' => time.Hour < 12 ? "am" : "pm",
        'D' or 'x' => Written(time, "MM'/'dd'/'yy"),
        'F' => Written(time, "yyyy-MM-dd"),
        'T' or 'X' => Written(time, "HH':'mm':'ss"),
        'R' => Written(time, "HH:mm"),
        'r' => Written(time, "hh:mm:ss ") + (time.Hour < 12 ? "AM" : "PM"),
        'c' => Written(time, "ddd MMM ") + Digits(time.Day, 2, ' ') + Written(time, " HH:mm:ss yyyy"),
        'n' => "\n",
        't' => "\t",
        '%' => "%",

        // The clock of templates has no zone.
        'z' or 'Z' => "",
        _ => null,
    };

    private static string Written(DateTime time, string format) => time.ToString(format, CultureInfo.InvariantCulture);

    private static string Digits(int number, int width, char pad = '0') => number.ToString(CultureInfo.InvariantCulture).PadLeft(width, pad);

    /// <summary>Without the zeros or spaces that fill it up.</summary>
    private static string Bare(string part) => part.TrimStart('0', ' ') is { Length: > 0 } bare ? bare : part[^1..];
}
