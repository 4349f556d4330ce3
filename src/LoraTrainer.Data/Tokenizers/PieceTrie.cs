using System.Numerics;

namespace LoraTrainer.Data.Tokenizers;

/// <summary>Texts with a number each, looked up by prefix: all that begin at a place of a text are found in one walk. Immutable once filled.</summary>
internal sealed class PieceTrie
{
    /// <summary>The node of the empty text.</summary>
    public const int Root = 0;

    private const int None = -1;

    private readonly ulong[] keys;
    private readonly int[] children;
    private readonly int[] values;
    private readonly int shift;

    /// <param name="pieces">Not empty each; the first of equal texts counts.</param>
    public PieceTrie(IReadOnlyCollection<(string Text, int Value)> pieces)
    {
        long characters = pieces.Sum(piece => (long)piece.Text.Length);
        int capacity = checked((int)BitOperations.RoundUpToPowerOf2((ulong)Math.Max(16, characters + (characters / 2))));
        shift = 64 - BitOperations.Log2((uint)capacity);
        keys = new ulong[capacity];
        children = new int[capacity];
        var nodes = new List<int> { None };
        foreach ((string text, int value) in pieces)
        {
            int node = Root;
            foreach (char c in text)
            {
                int slot = SlotOf(node, c);
                if (keys[slot] == 0)
                {
                    keys[slot] = Key(node, c);
                    children[slot] = nodes.Count;
                    nodes.Add(None);
                }

                node = children[slot];
            }

            if (nodes[node] == None)
            {
                nodes[node] = value;
            }
        }

        values = [.. nodes];
    }

    /// <summary>The node after <paramref name="node"/> and <paramref name="c"/>; negative where no text goes on so.</summary>
    public int Child(int node, char c)
    {
        int slot = SlotOf(node, c);
        return keys[slot] == 0 ? None : children[slot];
    }

    /// <summary>The number of the text that ends at <paramref name="node"/>; negative where none does.</summary>
    public int ValueAt(int node) => values[node];

    /// <summary>The longest text that <paramref name="text"/> begins with.</summary>
    /// <param name="text">Where to look.</param>
    /// <param name="length">Its length; 0 where there is none.</param>
    /// <returns>Its number; negative where there is none.</returns>
    public int Longest(ReadOnlySpan<char> text, out int length)
    {
        int node = Root, found = None;
        length = 0;
        for (int i = 0; i < text.Length && (node = Child(node, text[i])) >= 0; i++)
        {
            if (values[node] >= 0)
            {
                (found, length) = (values[node], i + 1);
            }
        }

        return found;
    }

    /// <summary>Never 0, which marks a free slot.</summary>
    private static ulong Key(int node, char c) => ((ulong)(uint)node << 17) | 0x10000u | c;

    private int SlotOf(int node, char c)
    {
        ulong key = Key(node, c);
        int slot = (int)((key * 0x9E3779B97F4A7C15) >> shift);
        while (keys[slot] != key && keys[slot] != 0)
        {
            slot = (slot + 1) & (keys.Length - 1);
        }

        return slot;
    }
}
