using System.Text.Json;
using LoraTrainer.Storage;

namespace LoraTrainer.Data.Datasets;

/// <summary>One JSON array of objects, element by element. An element that is no object is a faulty row; an error of the syntax ends the reading, as nothing says where the next element begins.</summary>
internal static class JsonArrayRows
{
    public static IEnumerable<SourceRow> Read(ByteWindow window, RowPlaces places)
    {
        var cursor = new Cursor(window, places);
        while (cursor.Next())
        {
            yield return cursor.Row();
        }
    }

    private sealed class Cursor(ByteWindow window, RowPlaces places)
    {
        private JsonReaderState state;
        private bool isOpen;
        private bool isFinal;
        private int line = 1;
        private int row;
        private int elementStart;
        private int elementLength;

        /// <summary>Goes to the next element; false behind the last one, when nothing but white space followed.</summary>
        public bool Next()
        {
            Consume(elementStart + elementLength);
            elementStart = elementLength = 0;
            row++;
            try
            {
                while (true)
                {
                    if (TryAdvance() is { } found)
                    {
                        return found;
                    }

                    if (window.Length > ByteWindow.MostRowBytes)
                    {
                        throw places.Lost(line, row, ByteWindow.TooLong);
                    }

                    isFinal = !window.More();
                }
            }
            catch (JsonException exception)
            {
                throw places.Lost(line, row, $"not a JSON array of objects: {JsonProblem.Reason(exception)}", exception);
            }
        }

        public SourceRow Row()
        {
            ReadOnlyMemory<byte> element = window.Memory(elementStart, elementLength);
            int at = line + window.Span[..elementStart].Count((byte)'\n');
            if (RowReader.Utf8Fault(element.Span) is { } broken)
            {
                return places.Faulty(at, row, broken);
            }

            using JsonDocument document = JsonDocument.Parse(element);
            return JsonLineRows.RowOf(document.RootElement, at, row, places);
        }

        /// <summary>Null where the bytes at hand do not decide it.</summary>
        private bool? TryAdvance()
        {
            var reader = new Utf8JsonReader(window.Span, isFinal, state);
            if (!isOpen)
            {
                if (!reader.Read())
                {
                    return null;
                }

                isOpen = true;
                state = reader.CurrentState;
                Consume((int)reader.BytesConsumed);
                reader = new Utf8JsonReader(window.Span, isFinal, state);
            }

            if (!reader.Read())
            {
                return null;
            }

            if (reader.TokenType == JsonTokenType.EndArray)
            {
                state = reader.CurrentState;
                Consume((int)reader.BytesConsumed);
                RequireEnd();
                return false;
            }

            elementStart = (int)reader.TokenStartIndex;
            if (!reader.TrySkip())
            {
                elementStart = 0;
                return null;
            }

            elementLength = (int)reader.BytesConsumed - elementStart;
            state = reader.CurrentState;
            return true;
        }

        private void RequireEnd()
        {
            do
            {
                int other = window.Span.IndexOfAnyExcept(" \t\r\n"u8);
                if (other >= 0)
                {
                    string advice = window.Span[other] == '[' ? ". If each line is a list of messages, give it a name: {\"messages\": [...]}" : "";
                    throw places.Lost(line + window.Span[..other].Count((byte)'\n'), row, $"not a JSON array of objects: something follows behind the array's end{advice}");
                }

                Consume(window.Length);
            }
            while (window.More());
        }

        private void Consume(int count)
        {
            line += window.Span[..count].Count((byte)'\n');
            window.Consume(count);
        }
    }
}
