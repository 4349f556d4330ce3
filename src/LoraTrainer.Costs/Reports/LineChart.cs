using System.Globalization;
using System.Xml;

namespace LoraTrainer.Costs.Reports;

/// <summary>A curve as inline SVG: axes with round numbers, a title and a description for those who hear it.</summary>
internal sealed record LineChart
{
    // Units of the drawing; about as many pixels, so that its letters stay readable on a phone.
    private const int Width = 400;
    private const int Height = 230;
    private const int Left = 52;
    private const int Right = 12;
    private const int Top = 12;
    private const int Bottom = 42;

    /// <summary>More points than this are means of neighbours: a screen has no more room.</summary>
    private const int MostPoints = 240;

    public required string Title { get; init; }

    /// <summary>With its unit.</summary>
    public required string XTitle { get; init; }

    /// <summary>With its unit.</summary>
    public required string YTitle { get; init; }

    /// <summary>In ascending order of X; values that are not finite are left out.</summary>
    public required IReadOnlyList<(double X, double Y)> Points { get; init; }

    /// <summary>Places on the x-axis where something happened.</summary>
    public IReadOnlyList<double> Marks { get; init; } = [];

    /// <summary>What a mark is.</summary>
    public string MarkTitle { get; init; } = string.Empty;

    /// <summary>Whether the y-axis begins at 0, where a height means an amount.</summary>
    public bool FromZero { get; init; }

    public void Write(XmlWriter writer, string id)
    {
        (double X, double Y)[] points = Thinned([.. Points.Where(point => double.IsFinite(point.X) && double.IsFinite(point.Y))], out int together);
        if (points.Length == 0)
        {
            return;
        }

        AxisTicks x = AxisTicks.Between(Math.Min(0, points[0].X), points[^1].X, 4);
        AxisTicks y = AxisTicks.Between(FromZero ? 0 : points.Min(point => point.Y), points.Max(point => point.Y), 4);
        writer.WriteStartElement("figure");
        writer.WriteStartElement("svg");
        writer.WriteAttributeString("viewBox", $"0 0 {Width} {Height}");
        writer.WriteAttributeString("role", "img");
        writer.WriteAttributeString("aria-labelledby", $"{id}-t {id}-d");
        Named(writer, "title", id + "-t", Title);
        Named(writer, "desc", id + "-d", $"{YTitle} from {y.Fine(points[0].Y)} at first to {y.Fine(points[^1].Y)} at last, over {XTitle} up to {x.Fine(points[^1].X)}.");
        foreach (double tick in y.Values)
        {
            Line(writer, "grid", Left, Y(tick), Width - Right, Y(tick));
            Text(writer, Left - 6, Y(tick) + 4, "end", y.Label(tick));
        }

        foreach (double tick in x.Values)
        {
            Line(writer, "axis", X(tick), Height - Bottom, X(tick), Height - Bottom + 4);
            Text(writer, X(tick), Height - Bottom + 17, tick == x.Greatest ? "end" : "middle", x.Label(tick));
        }

        foreach (double mark in Marks.Where(mark => mark >= x.Least && mark <= x.Greatest))
        {
            Line(writer, "mark", X(mark), Top, X(mark), Height - Bottom);
        }

        Line(writer, "axis", Left, Height - Bottom, Width - Right, Height - Bottom);
        writer.WriteStartElement(points.Length == 1 ? "circle" : "polyline");
        writer.WriteAttributeString("class", "curve");
        if (points.Length == 1)
        {
            writer.WriteAttributeString("cx", Number(X(points[0].X)));
            writer.WriteAttributeString("cy", Number(Y(points[0].Y)));
            writer.WriteAttributeString("r", "3");
        }
        else
        {
            writer.WriteAttributeString("points", string.Join(' ', points.Select(point => $"{Number(X(point.X))},{Number(Y(point.Y))}")));
        }

        writer.WriteEndElement();
        Text(writer, (Left + Width - Right) / 2.0, Height - 6, "middle", XTitle);
        writer.WriteEndElement();
        writer.WriteStartElement("figcaption");
        writer.WriteElementString("b", Title);
        writer.WriteString($". Upwards: {YTitle}, {y.Fine(points[0].Y)} at first, {y.Fine(points[^1].Y)} at last.");
        if (together > 1)
        {
            writer.WriteString($" Each point is the mean of up to {together.ToString(CultureInfo.InvariantCulture)} logged steps.");
        }

        if (Marks.Count > 0)
        {
            writer.WriteString($" Dashed: {MarkTitle}.");
        }

        writer.WriteEndElement();
        writer.WriteEndElement();

        double X(double value) => Left + ((value - x.Least) / (x.Greatest - x.Least) * (Width - Left - Right));

        double Y(double value) => Height - Bottom - ((value - y.Least) / (y.Greatest - y.Least) * (Height - Top - Bottom));
    }

    private static (double X, double Y)[] Thinned((double X, double Y)[] points, out int together)
    {
        together = (points.Length + MostPoints - 1) / MostPoints;
        return together <= 1 ? points : [.. points.Chunk(together).Select(chunk => (chunk.Average(point => point.X), chunk.Average(point => point.Y)))];
    }

    private static void Named(XmlWriter writer, string element, string id, string text)
    {
        writer.WriteStartElement(element);
        writer.WriteAttributeString("id", id);
        writer.WriteString(text);
        writer.WriteEndElement();
    }

    private static void Line(XmlWriter writer, string kind, double x1, double y1, double x2, double y2)
    {
        writer.WriteStartElement("line");
        writer.WriteAttributeString("class", kind);
        writer.WriteAttributeString("x1", Number(x1));
        writer.WriteAttributeString("y1", Number(y1));
        writer.WriteAttributeString("x2", Number(x2));
        writer.WriteAttributeString("y2", Number(y2));
        writer.WriteEndElement();
    }

    private static void Text(XmlWriter writer, double x, double y, string anchor, string text)
    {
        writer.WriteStartElement("text");
        writer.WriteAttributeString("x", Number(x));
        writer.WriteAttributeString("y", Number(y));
        writer.WriteAttributeString("text-anchor", anchor);
        writer.WriteString(text);
        writer.WriteEndElement();
    }

    private static string Number(double value) => value.ToString("0.##", CultureInfo.InvariantCulture);
}
