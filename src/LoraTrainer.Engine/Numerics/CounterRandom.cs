using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace LoraTrainer.Engine.Numerics;

/// <summary>
/// Random numbers without state: number <c>element</c> of (seed, stream, step) is a function of those four values, so any worker, device or
/// resumed run can compute any of them. The function is Philox4x32-10 (Salmon et al. 2011):
/// key = (low word of seed, high word of seed); counter = (low word of block, high word of block, step, stream) with block = element / 4;
/// the number is word element % 4 of the result. A stream names a use (one dropout site, one initialised tensor, ...); a step is an
/// optimizer or micro step, or 0.
/// </summary>
/// <param name="seed">The run's seed.</param>
/// <param name="stream">Which use of randomness.</param>
/// <param name="step">Which repetition of that use.</param>
public readonly unsafe struct CounterRandom(ulong seed, uint stream, uint step)
{
    private const uint Multiplier0 = 0xD2511F53, Multiplier1 = 0xCD9E8D57;
    private const uint Weyl0 = 0x9E3779B9, Weyl1 = 0xBB67AE85;
    private const int Rounds = 10;

    /// <summary>Elements that <see cref="Fill32"/> makes at once: 8 counters of 4 words.</summary>
    private const int Group = 32;

    /// <summary>Uniform over all 32-bit numbers.</summary>
    public uint UniformUInt32(ulong element)
    {
        ulong block = element >> 2;
        Vector128<uint> words = Philox(Vector128.Create((uint)block, (uint)(block >> 32), step, stream), (uint)seed, (uint)(seed >> 32));
        return words.GetElement((int)(element & 3));
    }

    /// <summary>Uniform in [0, 1), a multiple of 2^-24: the upper 24 bits of <see cref="UniformUInt32"/>.</summary>
    public float Uniform(ulong element) => (UniformUInt32(element) >> 8) * (1f / 16777216f);

    /// <summary>
    /// Standard normal. Elements 2p and 2p+1 share the words u = UniformUInt32(2p), v = UniformUInt32(2p+1) (Box-Muller in double):
    /// radius = sqrt(-2 log((u + 1) / 2^32)), angle = 2 pi v / 2^32; the even element is radius cos(angle), the odd one radius sin(angle).
    /// </summary>
    public float Normal(ulong element)
    {
        double u = (UniformUInt32(element & ~1UL) + 1.0) * (1.0 / 4294967296.0);
        double angle = UniformUInt32(element | 1UL) * (2.0 * Math.PI / 4294967296.0);
        double radius = Math.Sqrt(-2.0 * DeterministicMath.Log(u));
        return (float)(radius * ((element & 1) == 0 ? DeterministicMath.Cos(angle) : DeterministicMath.Sin(angle)));
    }

    /// <summary>destination[i] = <see cref="Uniform"/>(firstElement + i), bit for bit, many at a time.</summary>
    [SkipLocalsInit]
    public void FillUniform(Span<float> destination, ulong firstElement)
    {
        uint* words = stackalloc uint[Group];
        int i = 0;
        while (i < destination.Length)
        {
            ulong element = firstElement + (ulong)i;
            int skip = (int)(element % Group);
            Fill32(element - (uint)skip, words);
            for (; skip < Group && i < destination.Length; skip++, i++)
            {
                destination[i] = (words[skip] >> 8) * (1f / 16777216f);
            }
        }
    }

    /// <summary>destination[i] = <see cref="Normal"/>(firstElement + i), bit for bit, many at a time.</summary>
    [SkipLocalsInit]
    public void FillNormal(Span<float> destination, ulong firstElement)
    {
        float* group = stackalloc float[Group];
        int i = 0;
        while (i < destination.Length)
        {
            ulong element = firstElement + (ulong)i;
            int skip = (int)(element % Group);
            NormalGroup(element - (uint)skip, group);
            int count = Math.Min(Group - skip, destination.Length - i);
            new ReadOnlySpan<float>(group + skip, count).CopyTo(destination.Slice(i, count));
            i += count;
        }
    }

    /// <summary>Element e is kept iff UniformUInt32(e) &lt; this number: keepProbability * 2^32, rounded down; at most 2^32.</summary>
    /// <param name="keepProbability">In (0, 1].</param>
    public static ulong KeepThreshold(float keepProbability)
    {
        if (!(keepProbability > 0 && keepProbability <= 1))
        {
            throw new ArgumentOutOfRangeException(nameof(keepProbability), keepProbability, "the probability of keeping an element must be in (0, 1]");
        }

        return Math.Max(1, (ulong)(keepProbability * 4294967296.0));
    }

    /// <summary>
    /// Dropout, and its backward (the same function on the gradient): output[i] = keep(firstElement + i) ? input[i] * (1/keepProbability) : 0,
    /// where keep is the comparison of <see cref="KeepThreshold"/>. Any split into calls gives the same values.
    /// </summary>
    /// <param name="output">Overwritten; may be the input itself.</param>
    /// <param name="input">As many elements as the output.</param>
    /// <param name="firstElement">Number of the first element.</param>
    /// <param name="keepProbability">In (0, 1].</param>
    internal void Dropout(Span<float> output, ReadOnlySpan<float> input, ulong firstElement, float keepProbability)
    {
        ArgumentOutOfRangeException.ThrowIfNotEqual(input.Length, output.Length);
        fixed (float* y = output, x = input)
        {
            Dropout(y, x, output.Length, firstElement, keepProbability);
        }
    }

    /// <inheritdoc cref="Dropout(Span{float}, ReadOnlySpan{float}, ulong, float)"/>
    [SkipLocalsInit]
    internal void Dropout(float* output, float* input, long count, ulong firstElement, float keepProbability)
    {
        uint last = (uint)(KeepThreshold(keepProbability) - 1);
        float scale = 1f / keepProbability;
        uint* words = stackalloc uint[Group];
        Vector512<uint> lastLanes = Vector512.Create(last);
        Vector512<float> scaleLanes = Vector512.Create(scale);
        long i = 0;
        while (i < count)
        {
            ulong element = firstElement + (ulong)i;
            int skip = (int)(element % Group);
            Fill32(element - (uint)skip, words);
            if (skip == 0 && count - i >= Group)
            {
                for (int half = 0; half < Group; half += VectorMath.Lanes)
                {
                    Vector512<float> keep = Vector512.LessThanOrEqual(Vector512.Load(words + half), lastLanes).AsSingle();
                    ((Vector512.Load(input + i + half) * scaleLanes) & keep).Store(output + i + half);
                }

                i += Group;
                continue;
            }

            for (; skip < Group && i < count; skip++, i++)
            {
                output[i] = words[skip] <= last ? input[i] * scale : 0f;
            }
        }
    }

    /// <summary>
    /// Fisher-Yates: for i = n-1 down to 1, swaps item i with item j, j uniform in 0..i. j is the high word of u * (i+1) (Lemire); a u whose
    /// low word is below 2^32 mod (i+1) is discarded, so that no j is favoured. The u are elements 0, 1, 2, ... in the order they are needed.
    /// </summary>
    public void Shuffle(Span<int> items)
    {
        ulong element = 0;
        for (int i = items.Length - 1; i > 0; i--)
        {
            uint range = (uint)i + 1;
            ulong product = (ulong)UniformUInt32(element++) * range;
            if ((uint)product < range)
            {
                uint threshold = (uint)((1UL << 32) % range);
                while ((uint)product < threshold)
                {
                    product = (ulong)UniformUInt32(element++) * range;
                }
            }

            int j = (int)(product >> 32);
            (items[i], items[j]) = (items[j], items[i]);
        }
    }

    /// <summary>The four words that Philox4x32-10 makes of one counter under one key.</summary>
    internal static Vector128<uint> Philox(Vector128<uint> counter, uint key0, uint key1)
    {
        uint c0 = counter.GetElement(0), c1 = counter.GetElement(1), c2 = counter.GetElement(2), c3 = counter.GetElement(3);
        for (int round = 0; round < Rounds; round++)
        {
            ulong product0 = (ulong)Multiplier0 * c0;
            ulong product1 = (ulong)Multiplier1 * c2;
            c0 = (uint)(product1 >> 32) ^ c1 ^ key0;
            c1 = (uint)product1;
            c2 = (uint)(product0 >> 32) ^ c3 ^ key1;
            c3 = (uint)product0;
            key0 += Weyl0;
            key1 += Weyl1;
        }

        return Vector128.Create(c0, c1, c2, c3);
    }

    /// <summary>Normal of 32 elements from <paramref name="firstElement"/> on, which is a multiple of 32: four pairs side by side.</summary>
    [SkipLocalsInit]
    private void NormalGroup(ulong firstElement, float* destination)
    {
        uint* words = stackalloc uint[Group];
        Fill32(firstElement, words);
        for (int pair = 0; pair < Group; pair += 8)
        {
            // Each 64-bit lane holds u in its low half and v in its high half; the results go back the same way.
            Vector256<long> both = Vector256.Load((long*)(words + pair));
            Vector256<double> u = DeterministicMath.SmallToDouble(both & Vector256.Create((long)uint.MaxValue));
            Vector256<double> v = DeterministicMath.SmallToDouble(both >>> 32);
            u = (u + Vector256<double>.One) * Vector256.Create(1.0 / 4294967296.0);
            Vector256<double> radius = Vector256.Sqrt(Vector256.Create(-2.0) * DeterministicMath.Log(u));
            (Vector256<double> sin, Vector256<double> cos) = DeterministicMath.SinCos(v * Vector256.Create(2.0 * Math.PI / 4294967296.0));
            Vector256<double> even = radius * cos, odd = radius * sin;
            for (int lane = 0; lane < 4; lane++)
            {
                destination[pair + 2 * lane] = (float)even.GetElement(lane);
                destination[pair + 2 * lane + 1] = (float)odd.GetElement(lane);
            }
        }
    }

    /// <summary>UniformUInt32 of 32 elements from <paramref name="firstElement"/> on, which is a multiple of 32: eight counters side by side.</summary>
    private void Fill32(ulong firstElement, uint* words)
    {
        if (!Avx2.IsSupported)
        {
            for (uint i = 0; i < Group; i += 4)
            {
                ulong counter = (firstElement + i) >> 2;
                Philox(Vector128.Create((uint)counter, (uint)(counter >> 32), step, stream), (uint)seed, (uint)(seed >> 32)).Store(words + i);
            }

            return;
        }

        // One counter per 64-bit lane; only the low halves of the lanes mean anything. Even lanes hold counters 0..3, odd ones 4..7, which is
        // the order in which the unpacking below wants them. Eight counters that start at a multiple of 8 share their upper words.
        ulong block = firstElement >> 2;
        Vector512<ulong> c0 = Vector512.Create(block) + Vector512.Create(0UL, 4, 1, 5, 2, 6, 3, 7);
        Vector512<ulong> c1 = Vector512.Create(block >> 32);
        Vector512<ulong> c2 = Vector512.Create((ulong)step);
        Vector512<ulong> c3 = Vector512.Create((ulong)stream);
        uint key0 = (uint)seed, key1 = (uint)(seed >> 32);
        for (int round = 0; round < Rounds; round++)
        {
            Vector512<ulong> product0 = MultiplyLowHalves(c0, Multiplier0);
            Vector512<ulong> product1 = MultiplyLowHalves(c2, Multiplier1);
            c0 = (product1 >> 32) ^ c1 ^ Vector512.Create((ulong)key0);
            c1 = product1;
            c2 = (product0 >> 32) ^ c3 ^ Vector512.Create((ulong)key1);
            c3 = product0;
            key0 += Weyl0;
            key1 += Weyl1;
        }

        // Words 0, 1 of a counter in one lane, words 2, 3 in the other.
        Vector512<ulong> lowHalf = Vector512.Create((ulong)uint.MaxValue);
        Vector512<ulong> first = (c0 & lowHalf) | (c1 << 32);
        Vector512<ulong> second = (c2 & lowHalf) | (c3 << 32);
        ulong* target = (ulong*)words;
        if (Avx512F.IsSupported)
        {
            Avx512F.UnpackLow(first, second).Store(target);
            Avx512F.UnpackHigh(first, second).Store(target + 8);
        }
        else
        {
            Avx2.UnpackLow(first.GetLower(), second.GetLower()).Store(target);
            Avx2.UnpackLow(first.GetUpper(), second.GetUpper()).Store(target + 4);
            Avx2.UnpackHigh(first.GetLower(), second.GetLower()).Store(target + 8);
            Avx2.UnpackHigh(first.GetUpper(), second.GetUpper()).Store(target + 12);
        }
    }

    /// <summary>The 64-bit products of the lanes' low halves and a constant. Needs AVX2.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<ulong> MultiplyLowHalves(Vector512<ulong> lanes, uint factor)
    {
        if (Avx512F.IsSupported)
        {
            return Avx512F.Multiply(lanes.AsUInt32(), Vector512.Create((ulong)factor).AsUInt32());
        }

        Vector256<uint> factors = Vector256.Create((ulong)factor).AsUInt32();
        return Vector512.Create(Avx2.Multiply(lanes.GetLower().AsUInt32(), factors), Avx2.Multiply(lanes.GetUpper().AsUInt32(), factors));
    }
}
