using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using LoraTrainer.Engine.Native;
using LoraTrainer.Engine.Numerics;
using LoraTrainer.Engine.Quantization;

namespace LoraTrainer.Engine.Ops;

/// <content>Rows of codes of four bits whose blocks begin with the rows.</content>
public static unsafe partial class Gemv
{
    /// <summary>Of codes with one scale.</summary>
    private const int BlockBytes = BlockwiseFourBit.Blocksize / 2;

    private partial struct Work
    {
        /// <summary>
        /// The sums of some rows, four at a time. With double quantization the values of the next group's scales are looked up while this one is summed. In
        /// between, they would hold up its products, and the vectors that load them would wait until they have left the store buffer.
        /// </summary>
        private readonly void MultiplyFourBit(in Matrix matrix, int row, int endRow, float* scratch)
        {
            FourBitBlocks blocks = matrix.Stored.Blocks;
            int blocksPerRow = Columns / BlockwiseFourBit.Blocksize;
            float* scales = scratch, values = scales + ScaleFloats(Columns), nextValues = values + ScaleFloats(Columns);
            if (blocks.HasNestedScales)
            {
                blocks.LookUpScales((long)row * blocksPerRow, Math.Min(GroupRows, endRow - row) * blocksPerRow, values);
            }

            for (; row < endRow; row += GroupRows)
            {
                int rows = Math.Min(GroupRows, endRow - row);
                long block = (long)row * blocksPerRow;
                nint to1 = Math.Min(1, rows - 1) * blocksPerRow, to2 = Math.Min(2, rows - 1) * blocksPerRow, to3 = (rows - 1) * blocksPerRow;
                byte* codes = blocks.Packed + block * BlockBytes;
                Vector128<float> sums;
                if (!blocks.HasNestedScales)
                {
                    sums = FourBitSums(blocks.Code, codes, blocks.PlainAbsmax + block, to1, to2, to3, matrix.X, blocksPerRow, default(NoLookup));
                }
                else
                {
                    blocks.FinishScales(block, rows * blocksPerRow, values, scales);
                    long next = block + GroupRows * blocksPerRow;
                    int nextRows = Math.Min(GroupRows, endRow - row - rows);
                    if (nextRows == GroupRows)
                    {
                        sums = FourBitSums(blocks.Code, codes, scales, to1, to2, to3, matrix.X, blocksPerRow, new Lookup(blocks.AbsmaxCodes + next, blocks.NestedCode, nextValues));
                    }
                    else
                    {
                        blocks.LookUpScales(next, nextRows * blocksPerRow, nextValues);
                        sums = FourBitSums(blocks.Code, codes, scales, to1, to2, to3, matrix.X, blocksPerRow, default(NoLookup));
                    }

                    float* used = values;
                    values = nextValues;
                    nextValues = used;
                }

                Store(sums, matrix.Y + row, rows);
            }
        }
    }

    /// <summary>The sums of four rows of codes of which three lie so many blocks behind the first. A chunk is two blocks; of half a chunk two rows make one, the second with the upper lanes.</summary>
    /// <param name="code">(16) values of the codes.</param>
    /// <param name="row">The first row's codes.</param>
    /// <param name="scales">Of its blocks.</param>
    /// <param name="to1">Blocks to the second row.</param>
    /// <param name="to2">To the third.</param>
    /// <param name="to3">To the fourth.</param>
    /// <param name="x">In the order of the chunks.</param>
    /// <param name="count">Blocks of a row.</param>
    /// <param name="next">Looks up 4 * <paramref name="count"/> values on the way.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static Vector128<float> FourBitSums<TLookup>(float* code, byte* row, float* scales, nint to1, nint to2, nint to3, float* x, nint count, TLookup next)
        where TLookup : struct, ILookup
    {
        nint bytes1 = to1 * BlockBytes, bytes2 = to2 * BlockBytes, bytes3 = to3 * BlockBytes;
        Vector512<float> table = Vector512.Load(code);
        Vector512<float> sum0 = default, sum1 = default, sum2 = default, sum3 = default;
        byte* ahead = row + PrefetchBytes;
        for (float* end = scales + count / 2 * 2; scales < end; scales += 2, row += ChunkBytes, x += MostChunkElements, ahead += GroupRows * ChunkBytes)
        {
            Prefetch.Line(ahead);
            Prefetch.Line(ahead + ChunkBytes);
            Prefetch.Line(ahead + 2 * ChunkBytes);
            Prefetch.Line(ahead + 3 * ChunkBytes);
            Vector512<float> chain0 = default, chain1 = default, chain2 = default, chain3 = default;
            TwoSlots(table, row, bytes1, bytes2, bytes3, x, ref chain0, ref chain1, ref chain2, ref chain3);
            next.LookUpTwo();
            TwoSlots(table, row + 1, bytes1, bytes2, bytes3, x + 2 * Lanes, ref chain0, ref chain1, ref chain2, ref chain3);
            next.LookUpTwo();
            TwoSlots(table, row + 2, bytes1, bytes2, bytes3, x + 4 * Lanes, ref chain0, ref chain1, ref chain2, ref chain3);
            next.LookUpTwo();
            TwoSlots(table, row + 3, bytes1, bytes2, bytes3, x + 6 * Lanes, ref chain0, ref chain1, ref chain2, ref chain3);
            next.LookUpTwo();
            sum0 = Vector512.FusedMultiplyAdd(chain0, Pair(scales, scales + 1), sum0);
            sum1 = Vector512.FusedMultiplyAdd(chain1, Pair(scales + to1, scales + to1 + 1), sum1);
            sum2 = Vector512.FusedMultiplyAdd(chain2, Pair(scales + to2, scales + to2 + 1), sum2);
            sum3 = Vector512.FusedMultiplyAdd(chain3, Pair(scales + to3, scales + to3 + 1), sum3);
        }

        if (count % 2 != 0)
        {
            Prefetch.Line(ahead);
            Prefetch.Line(ahead + ChunkBytes);
            Vector512<uint> first = Vector512.Create(Vector256.Load(row), Vector256.Load(row + bytes1)).AsUInt32(), second = Vector512.Create(Vector256.Load(row + bytes2), Vector256.Load(row + bytes3)).AsUInt32();
            Vector512<float> chain0 = default, chain1 = default;
            Slot(0, table, first, second, x, ref chain0, ref chain1);
            Slot(4, table, first, second, x + Lanes, ref chain0, ref chain1);
            next.LookUpTwo();
            Slot(8, table, first, second, x + 2 * Lanes, ref chain0, ref chain1);
            Slot(12, table, first, second, x + 3 * Lanes, ref chain0, ref chain1);
            Slot(16, table, first, second, x + 4 * Lanes, ref chain0, ref chain1);
            next.LookUpTwo();
            Slot(20, table, first, second, x + 5 * Lanes, ref chain0, ref chain1);
            Slot(24, table, first, second, x + 6 * Lanes, ref chain0, ref chain1);
            Slot(28, table, first, second, x + 7 * Lanes, ref chain0, ref chain1);
            chain0 *= Pair(scales, scales + to1);
            chain1 *= Pair(scales + to2, scales + to3);
            sum0 += Vector512.ConditionalSelect(LowerLanes, chain0, default);
            sum1 += Vector512.ConditionalSelect(LowerLanes, default, chain0);
            sum2 += Vector512.ConditionalSelect(LowerLanes, chain1, default);
            sum3 += Vector512.ConditionalSelect(LowerLanes, default, chain1);
        }

        return VectorMath.SumLanes(sum0, sum1, sum2, sum3);
    }

    /// <summary>One scale in the lower eight lanes, another in the upper ones. Loads that broadcast do it: the lanes are moved by what looks up the codes already.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Pair(float* lower, float* upper) => Vector512.ConditionalSelect(LowerLanes, Vector512.Create(*lower), Vector512.Create(*upper));

    private static Vector512<float> LowerLanes
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Vector512.Create(-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0).AsSingle();
    }

    /// <summary>The codes of the lowest byte of each word of four rows. Words loaded some bytes further on have their next byte there, which spares every second shift.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void TwoSlots(
        Vector512<float> table, byte* row, nint bytes1, nint bytes2, nint bytes3, float* x, ref Vector512<float> chain0, ref Vector512<float> chain1, ref Vector512<float> chain2, ref Vector512<float> chain3)
    {
        Vector512<uint> word0 = Vector512.Load(row).AsUInt32(), word1 = Vector512.Load(row + bytes1).AsUInt32(), word2 = Vector512.Load(row + bytes2).AsUInt32(), word3 = Vector512.Load(row + bytes3).AsUInt32();
        Slot(0, table, word0, word1, x, ref chain0, ref chain1);
        Slot(0, table, word2, word3, x, ref chain2, ref chain3);
        Slot(4, table, word0, word1, x + Lanes, ref chain0, ref chain1);
        Slot(4, table, word2, word3, x + Lanes, ref chain2, ref chain3);
    }

    /// <summary>The codes at one place of each word of two vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Slot([ConstantExpected] byte shift, Vector512<float> table, Vector512<uint> first, Vector512<uint> second, float* x, ref Vector512<float> chain0, ref Vector512<float> chain1)
    {
        Vector512<float> factor = Vector512.Load(x);
        chain0 = Vector512.FusedMultiplyAdd(FourBitBlocks.Lookup(table, first >>> shift), factor, chain0);
        chain1 = Vector512.FusedMultiplyAdd(FourBitBlocks.Lookup(table, second >>> shift), factor, chain1);
    }

    /// <summary>Looks up something else while rows are summed, in the free places of the processor.</summary>
    private interface ILookup
    {
        /// <summary>The next two.</summary>
        void LookUpTwo();
    }

    private readonly struct NoLookup : ILookup
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void LookUpTwo()
        {
        }
    }

    /// <summary>What codes of scales stand for; see <see cref="FourBitBlocks.LookUpScales"/>.</summary>
    private struct Lookup(byte* codes, float* table, float* values) : ILookup
    {
        private readonly float* table = table;
        private byte* codes = codes;
        private float* values = values;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void LookUpTwo()
        {
            values[0] = table[codes[0]];
            values[1] = table[codes[1]];
            codes += 2;
            values += 2;
        }
    }
}
