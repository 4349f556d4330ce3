using System.Globalization;
using System.Text.Json;
using Parquet;
using Parquet.Data;
using Parquet.Schema;

namespace LoraTrainer.Data.Datasets;

/// <summary>
/// Rows of a Parquet file, one row group in memory at a time, put together again from the columns by their repetition and definition levels (Dremel, 2010, as the
/// Parquet format has them). Lists become lists, structs and maps objects, bytes texts where they are UTF-8.
/// </summary>
internal static class ParquetRows
{
    /// <summary>The most bytes that a row group may say it has when unpacked.</summary>
    private const long MostGroupBytes = 4L << 30;

    public static IEnumerable<SourceRow> Read(string file, RowPlaces places)
    {
        using FileStream stream = new(file, FileMode.Open, FileAccess.Read, FileShare.Read, 1 << 16);
        using var source = new Source(file, stream);
        int row = 0;
        for (int group = 0; group < source.Groups; group++)
        {
            foreach (Dictionary<string, object?> fields in source.Rows(group))
            {
                row++;
                yield return Serialize(fields, out string? wrong) is { } element ? new SourceRow(places.At(0, row), element) : places.Faulty(0, row, wrong!);
            }
        }
    }

    private static JsonElement? Serialize(Dictionary<string, object?> fields, out string? wrong)
    {
        wrong = null;
        using var bytes = new MemoryStream();
        try
        {
            using (var json = new Utf8JsonWriter(bytes, new JsonWriterOptions { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
            {
                Write(json, fields);
            }

            return JsonElement.Parse(bytes.GetBuffer().AsSpan(0, (int)bytes.Length));
        }
        catch (ArgumentException)
        {
            wrong = "a text that is not valid Unicode, or a number that is not finite";
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException)
        {
            wrong = $"lists and structs nested too deeply ({exception.Message})";
        }

        return null;
    }

    private static void Write(Utf8JsonWriter json, object? value)
    {
        switch (value)
        {
            case null:
                json.WriteNullValue();
                break;
            case Dictionary<string, object?> members:
                json.WriteStartObject();
                foreach ((string name, object? member) in members)
                {
                    json.WritePropertyName(name);
                    Write(json, member);
                }

                json.WriteEndObject();
                break;
            case MapEntries map:
                json.WriteStartObject();
                foreach (Dictionary<string, object?> entry in map.Entries.OfType<Dictionary<string, object?>>())
                {
                    json.WritePropertyName(Convert.ToString(entry.GetValueOrDefault(map.Key), CultureInfo.InvariantCulture) ?? "");
                    Write(json, entry.GetValueOrDefault(map.Value));
                }

                json.WriteEndObject();
                break;
            case List<object?> items:
                json.WriteStartArray();
                foreach (object? item in items)
                {
                    Write(json, item);
                }

                json.WriteEndArray();
                break;
            case string text:
                json.WriteStringValue(text);
                break;
            case byte[] bytes when System.Text.Unicode.Utf8.IsValid(bytes):
                json.WriteStringValue(bytes.AsSpan());
                break;
            case byte[] bytes:
                json.WriteBase64StringValue(bytes);
                break;
            case bool flag:
                json.WriteBooleanValue(flag);
                break;
            case float or double:
                json.WriteNumberValue(Convert.ToDouble(value, CultureInfo.InvariantCulture));
                break;
            case decimal number:
                json.WriteNumberValue(number);
                break;
            case ulong number:
                json.WriteNumberValue(number);
                break;
            case sbyte or byte or short or ushort or int or uint or long:
                json.WriteNumberValue(Convert.ToInt64(value, CultureInfo.InvariantCulture));
                break;
            case IFormattable other:
                json.WriteStringValue(other.ToString(other is DateTime or DateTimeOffset ? "o" : null, CultureInfo.InvariantCulture));
                break;
            default:
                json.WriteStringValue(value.ToString());
                break;
        }
    }

    /// <summary>Entries of a map: structs of a key and a value.</summary>
    private sealed record MapEntries(List<object?> Entries, string Key, string Value);

    /// <summary>The open file.</summary>
    private sealed class Source : IDisposable
    {
        private readonly string file;
        private readonly ParquetReader reader;
        private readonly ParquetSchema schema;

        public Source(string file, Stream stream)
        {
            this.file = file;
            reader = Guarded(() => ParquetReader.CreateAsync(stream, new ParquetOptions { TreatByteArrayAsString = true }, leaveStreamOpen: true).GetAwaiter().GetResult());
            schema = Guarded(() => reader.Schema);
        }

        public int Groups => reader.RowGroupCount;

        public IEnumerable<Dictionary<string, object?>> Rows(int group)
        {
            using ParquetRowGroupReader content = Guarded(() => reader.OpenRowGroupReader(group));
            if (content.RowGroup.TotalByteSize > MostGroupBytes || content.RowCount > int.MaxValue || content.RowCount < 0)
            {
                throw new DatasetException($"{file}: row group {group + 1} has {content.RowGroup.TotalByteSize >> 20} MiB, and one is held in memory at a time. Write the file with smaller row groups (pyarrow: row_group_size=10000).");
            }

            Column[] columns = Guarded(() => schema.DataFields.Select(field => new Column(Path(field), content.ReadRawColumnDataBaseAsync(field).AsTask().GetAwaiter().GetResult())).ToArray());
            for (long row = 0; row < content.RowCount; row++)
            {
                yield return Guarded(() => Assemble(columns));
            }
        }

        public void Dispose() => reader.DisposeAsync().AsTask().GetAwaiter().GetResult();

        private Dictionary<string, object?> Assemble(Column[] columns)
        {
            var fields = new Dictionary<string, object?>(StringComparer.Ordinal);
            foreach (Column column in columns)
            {
                if (!column.AddTo(fields))
                {
                    throw Damaged("a column has fewer values than there are rows");
                }
            }

            return fields;
        }

        /// <summary>The fields from the root to a leaf.</summary>
        private Field[] Path(DataField leaf)
        {
            foreach (Field field in schema.Fields)
            {
                if (PathBelow(field, leaf) is { } path)
                {
                    return [.. path];
                }
            }

            throw Damaged($"the column {leaf.Path} is not in the schema");
        }

        private static IEnumerable<Field>? PathBelow(Field field, DataField leaf)
        {
            if (ReferenceEquals(field, leaf))
            {
                return [field];
            }

            IEnumerable<Field> inner = field switch
            {
                ListField list => [list.Item],
                StructField members => members.Fields,
                MapField map => [map.Key, map.Value],
                _ => [],
            };
            return inner.Select(item => PathBelow(item, leaf)).FirstOrDefault(path => path is not null)?.Prepend(field);
        }

        /// <summary>The library answers damage with exceptions of every kind.</summary>
        private T Guarded<T>(Func<T> read)
        {
            try
            {
                return read();
            }
            catch (Exception exception) when (exception is not DatasetException)
            {
                throw Damaged(exception.Message, exception);
            }
        }

        private DatasetException Damaged(string reason, Exception? cause = null) => new($"{file}: not a Parquet file that can be read: {reason.ReplaceLineEndings(" ")}", cause);
    }

    /// <summary>One leaf of the schema in a row group, with the place from which it goes on.</summary>
    private sealed class Column
    {
        private readonly Field[] path;
        private readonly int[] repetition;
        private readonly int[] definition;
        private readonly object[] values;
        private readonly int count;
        private int at;
        private int taken;

        public Column(Field[] path, RawColumnData data)
        {
            this.path = path;
            using (data)
            {
                repetition = path[^1].MaxRepetitionLevel > 0 ? data.RepetitionLevels.ToArray() : [];
                definition = path[^1].MaxDefinitionLevel > 0 ? data.DefinitionLevels.ToArray() : [];
                values = ValuesOf(data);
                count = definition.Length > 0 ? definition.Length : values.Length;
            }
        }

        /// <summary>Puts this column's part of the next row into it; false where there is no further row.</summary>
        public bool AddTo(Dictionary<string, object?> row)
        {
            if (at >= count)
            {
                return false;
            }

            int start = at++;
            while (at < count && repetition.Length > 0 && repetition[at] > 0)
            {
                at++;
            }

            object? part = Build(0, start, at);
            row[path[0].Name] = row.TryGetValue(path[0].Name, out object? other) ? Merge(other, part) : part;
            return true;
        }

        /// <summary>The value of a field of the path, as the entries from <paramref name="start"/> to before <paramref name="end"/> tell it.</summary>
        private object? Build(int level, int start, int end)
        {
            Field field = path[level];
            int defined = definition.Length > 0 ? definition[start] : path[^1].MaxDefinitionLevel;
            switch (field)
            {
                case DataField { IsArray: false }:
                    return defined >= field.MaxDefinitionLevel ? Take() : null;
                case StructField:
                    return defined >= field.MaxDefinitionLevel ? Member(level + 1, start, end) : null;
                default:
                    break;
            }

            // A list, a map, or an old repeated field. One level below its elements it is there and empty; further below it is null.
            List<object?>? items = null;
            if (defined >= field.MaxDefinitionLevel)
            {
                items = [];
                for (int next = start; next < end;)
                {
                    int first = next++;
                    while (next < end && repetition[next] > field.MaxRepetitionLevel)
                    {
                        next++;
                    }

                    items.Add(field switch
                    {
                        DataField => Take(),
                        MapField => Member(level + 1, first, next),
                        _ => Build(level + 1, first, next),
                    });
                }
            }
            else if (defined == field.MaxDefinitionLevel - 1)
            {
                items = [];
            }

            return items is not null && field is MapField map ? new MapEntries(items, map.Key.Name, map.Value.Name) : items;
        }

        private Dictionary<string, object?> Member(int level, int start, int end) => new(StringComparer.Ordinal) { [path[level].Name] = Build(level, start, end) };

        private object? Take() => taken < values.Length ? values[taken++] : null;

        /// <summary>What two columns below the same field tell of it.</summary>
        private static object? Merge(object? one, object? other)
        {
            switch (one, other)
            {
                case (Dictionary<string, object?> members, Dictionary<string, object?> more):
                    foreach ((string name, object? value) in more)
                    {
                        members[name] = members.TryGetValue(name, out object? known) ? Merge(known, value) : value;
                    }

                    return members;
                case (List<object?> items, List<object?> more):
                    for (int i = 0; i < more.Count; i++)
                    {
                        if (i < items.Count)
                        {
                            items[i] = Merge(items[i], more[i]);
                        }
                        else
                        {
                            items.Add(more[i]);
                        }
                    }

                    return items;
                case (MapEntries map, MapEntries more):
                    return map with { Entries = (List<object?>)Merge(map.Entries, more.Entries)! };
                default:
                    return one ?? other;
            }
        }

        /// <summary>The values that are not null, out of the reader's buffers.</summary>
        private static object[] ValuesOf(RawColumnData data) => data switch
        {
            RawColumnData<ReadOnlyMemory<char>> texts => Copied(texts, text => text.ToString()),
            RawColumnData<ReadOnlyMemory<byte>> bytes => Copied(bytes, value => value.ToArray()),
            RawColumnData<bool> flags => Copied(flags, value => value),
            RawColumnData<sbyte> numbers => Copied(numbers, value => value),
            RawColumnData<byte> numbers => Copied(numbers, value => value),
            RawColumnData<short> numbers => Copied(numbers, value => value),
            RawColumnData<ushort> numbers => Copied(numbers, value => value),
            RawColumnData<int> numbers => Copied(numbers, value => value),
            RawColumnData<uint> numbers => Copied(numbers, value => value),
            RawColumnData<long> numbers => Copied(numbers, value => value),
            RawColumnData<ulong> numbers => Copied(numbers, value => value),
            RawColumnData<float> numbers => Copied(numbers, value => value),
            RawColumnData<double> numbers => Copied(numbers, value => value),
            RawColumnData<decimal> numbers => Copied(numbers, value => value),
            RawColumnData<DateTime> times => Copied(times, value => value),
            RawColumnData<DateOnly> times => Copied(times, value => value),
            RawColumnData<TimeOnly> times => Copied(times, value => value),
            RawColumnData<TimeSpan> times => Copied(times, value => value),
            RawColumnData<Guid> ids => Copied(ids, value => value),
            _ => throw new NotSupportedException($"columns of {data.GetType().GenericTypeArguments.FirstOrDefault()?.Name}"),
        };

        private static object[] Copied<T>(RawColumnData<T> data, Func<T, object> copy)
            where T : struct
        {
            Span<T> from = data.Values;
            object[] values = new object[from.Length];
            for (int i = 0; i < values.Length; i++)
            {
                values[i] = copy(from[i]);
            }

            return values;
        }
    }
}
