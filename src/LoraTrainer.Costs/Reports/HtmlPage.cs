using System.Globalization;
using System.Xml;

namespace LoraTrainer.Costs.Reports;

/// <summary>What stands in a cell: text, or whatever its work writes.</summary>
internal readonly record struct Cell(string? Text, Action? Write, string? Kind = null)
{
    public static implicit operator Cell(string text) => new(text, null);

    /// <summary>A moment or a day, never on two lines.</summary>
    public static Cell When(string text) => new(text, null, "when");
}

/// <summary>A bar: its length is its amount's share of the largest one.</summary>
/// <param name="Name">What it is.</param>
/// <param name="Length">Below 0 (a credit) there is no bar, but its value.</param>
/// <param name="Value">As it is printed.</param>
/// <param name="Kind">A class of the style sheet; null for the usual colour.</param>
internal readonly record struct Bar(string Name, decimal Length, string Value, string? Kind);

/// <summary>The parts that a page is made of. Every text goes through the XML writer, which escapes it, after what no page may hold was taken out.</summary>
internal sealed class HtmlPage(XmlWriter writer)
{
    public XmlWriter Writer => writer;

    public void Open(string element, string? kind = null, params ReadOnlySpan<(string Name, string Value)> attributes)
    {
        writer.WriteStartElement(element);
        if (kind is not null)
        {
            writer.WriteAttributeString("class", kind);
        }

        foreach ((string name, string value) in attributes)
        {
            writer.WriteAttributeString(name, ReportText.Plain(value));
        }
    }

    /// <summary>Never in the short form of XML, which HTML takes for an opening.</summary>
    public void Close() => writer.WriteFullEndElement();

    /// <summary>An element that has no content in HTML.</summary>
    public void Void(string element, params ReadOnlySpan<(string Name, string Value)> attributes)
    {
        Open(element, null, attributes);
        writer.WriteEndElement();
    }

    public void Text(string text) => writer.WriteString(ReportText.Plain(text));

    public void Text(string element, string text, string? kind = null)
    {
        Open(element, kind);
        if (element == "style")
        {
            writer.WriteString(text);
        }
        else
        {
            Text(text);
        }

        Close();
    }

    public void Link(string target, string text)
    {
        Open("a", null, ("href", target));
        Text(text);
        Close();
    }

    /// <summary>A headline number with its name and, below, a remark.</summary>
    public void Tile(string name, string value, string? remark = null)
    {
        Open("div", "tile");
        Text("dt", name);
        Text("dd", value, "big");
        if (remark is not null)
        {
            Text("dd", remark, "soft");
        }

        Close();
    }

    /// <summary>A tile with a line for each currency.</summary>
    public void CostTile(IReadOnlyList<Money> amounts, decimal unpricedHours, int digits)
    {
        Open("div", "tile");
        Text("dt", "Cost");
        foreach (string line in amounts.Count == 0 ? [ReportText.Amounts(amounts, unpricedHours)] : amounts.Select(amount => amount.ToString(digits)))
        {
            Text("dd", line, "big");
        }

        if (amounts.Count > 0 && unpricedHours > 0)
        {
            Text("dd", $"and {ReportText.Duration(unpricedHours)} without a rate", "soft");
        }

        Close();
    }

    /// <summary>Horizontal bars; those of different currencies have scales of their own. Hours have bars only where there is no money.</summary>
    public void Bars(IReadOnlyList<(string? Unit, Bar Bar)> bars)
    {
        bool isTime = bars.All(bar => bar.Unit is null);
        Open("div", "bars");
        foreach ((string? unit, Bar bar) in bars)
        {
            decimal longest = bars.Where(other => other.Unit == unit).Max(other => other.Bar.Length);
            decimal share = longest > 0 && (unit is not null || isTime) ? Math.Max(0, bar.Length) / longest : 0;
            Open("div", "bar");
            Text("span", bar.Name, "name");
            Open("span", "track");
            Open("span", bar.Kind is null ? "fill" : "fill " + bar.Kind, ("style", string.Create(CultureInfo.InvariantCulture, $"width:{share * 100:0.##}%")));
            Close();
            Close();
            Text("span", bar.Value, "value");
            Close();
        }

        Close();
        if (bars.Select(bar => bar.Unit).OfType<string>().Distinct().Count() > 1)
        {
            Text("p", "Each currency has a scale of its own.", "soft");
        }
    }

    /// <summary>A bar for each amount, and one for the hours without a rate.</summary>
    public static IEnumerable<(string? Unit, Bar Bar)> BarsOf(string name, IReadOnlyList<Money> amounts, decimal unpricedHours, int digits, string? kind)
    {
        foreach (Money amount in amounts)
        {
            yield return (amount.Currency, new Bar(name, amount.Amount, amount.ToString(digits), kind));
        }

        if (unpricedHours > 0)
        {
            yield return (null, new Bar(name, unpricedHours, ReportText.Duration(unpricedHours) + " without a rate", kind));
        }
    }

    /// <summary>A table whose rows become cards with labels where the screen is narrow.</summary>
    public void Table(string[] head, Func<int, bool> isNumber, Action<TableRows> rows)
    {
        Open("table");
        Open("thead");
        Open("tr");
        for (int column = 0; column < head.Length; column++)
        {
            Text("th", head[column], isNumber(column) ? "number" : null);
        }

        Close();
        Close();
        Open("tbody");
        rows(new TableRows(this, head, isNumber));
        Close();
        Close();
    }

    internal sealed class TableRows(HtmlPage page, string[] head, Func<int, bool> isNumber)
    {
        public void Row(string? kind, params ReadOnlySpan<Cell> cells)
        {
            page.Open("tr", kind);
            for (int column = 0; column < cells.Length; column++)
            {
                page.Open("td", cells[column].Kind ?? (isNumber(column) ? "number" : null), ("data-label", head[column]));
                if (cells[column].Write is { } write)
                {
                    write();
                }
                else if (cells[column].Text is { Length: > 0 } text)
                {
                    page.Text(text);
                }

                page.Close();
            }

            page.Close();
        }
    }
}
