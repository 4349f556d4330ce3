namespace LoraTrainer.Data.Datasets;

/// <summary>
/// A set of 64-bit hashes in 11 to 22 bytes each: many small tables with linear probing, at most three quarters full, which grow one after the other, so that
/// the whole is never held twice. Two of a few million different rows share a hash once in some million runs.
/// </summary>
internal sealed class FingerprintSet
{
    private const int TableBits = 8, LeastCapacity = 16;

    // 0 is an empty place; the hash 0 has a flag.
    private readonly ulong[][] tables = [.. Enumerable.Range(0, 1 << TableBits).Select(_ => new ulong[LeastCapacity])];
    private readonly int[] counts = new int[1 << TableBits];
    private bool hasZero;

    /// <summary>False: it was there already.</summary>
    public bool Add(ulong hash)
    {
        if (hash == 0)
        {
            bool isNew = !hasZero;
            hasZero = true;
            return isNew;
        }

        int number = (int)(hash >> (64 - TableBits));
        if (counts[number] >= tables[number].Length / 4 * 3)
        {
            ulong[] old = tables[number], larger = new ulong[checked(2 * old.Length)];
            foreach (ulong held in old)
            {
                if (held != 0)
                {
                    larger[PlaceOf(larger, held)] = held;
                }
            }

            tables[number] = larger;
        }

        ulong[] table = tables[number];
        int place = PlaceOf(table, hash);
        if (table[place] == hash)
        {
            return false;
        }

        table[place] = hash;
        counts[number]++;
        return true;
    }

    public bool Contains(ulong hash)
    {
        ulong[] table = tables[hash >> (64 - TableBits)];
        return hash == 0 ? hasZero : table[PlaceOf(table, hash)] == hash;
    }

    private static int PlaceOf(ulong[] table, ulong hash)
    {
        int mask = table.Length - 1, place = (int)(hash & (ulong)mask);
        while (table[place] != 0 && table[place] != hash)
        {
            place = (place + 1) & mask;
        }

        return place;
    }
}
