using LoraTrainer.Models.Formats;

namespace LoraTrainer.Models.Adapters;

/// <summary>How large the update of one module is. All are Frobenius norms: the root of the sum of squares.</summary>
/// <param name="Module">Its path.</param>
/// <param name="Out">Rows of the weight.</param>
/// <param name="In">Columns of the weight.</param>
/// <param name="Rank">R</param>
/// <param name="Scaling">s</param>
/// <param name="A">Of A.</param>
/// <param name="B">Of B; 0: nothing was learned here.</param>
/// <param name="Update">Of s B A; infinite or no number where a tensor holds such.</param>
public readonly record struct AdapterNorms(string Module, long Out, long In, int Rank, double Scaling, double A, double B, double Update)
{
    /// <summary>Of every module with A and B, in the order of their paths, numbers by value. B A is never formed: |B A|^2 is the sum over A A^T times B^T B, element by element.</summary>
    public static IReadOnlyList<AdapterNorms> Of(PeftAdapterFolder folder)
    {
        ArgumentNullException.ThrowIfNull(folder);
        var all = new List<AdapterNorms>();
        foreach (PeftAdapterFolderKey key in folder.Tensors.Keys.Where(key => key.Kind == PeftTensorKind.LoraA).OrderBy(key => LayerOf(key.Module) ?? int.MaxValue).ThenBy(key => key.Module, StringComparer.Ordinal))
        {
            ModelTensor tensorA = folder.Find(key.Module, PeftTensorKind.LoraA)!.Value, tensorB = folder.Find(key.Module, PeftTensorKind.LoraB)!.Value;
            int rank = (int)tensorA.Entry.Shape[0], columns = (int)tensorA.Entry.Shape[1], rows = (int)tensorB.Entry.Shape[0];
            double[] left = Gram(tensorA.ReadSingles(), rank, columns, columns, 1), right = Gram(tensorB.ReadSingles(), rank, rows, 1, rank);
            double scaling = TargetModules.ScalingOf(folder.Config, key.Module), product = 0, squareA = 0, squareB = 0;
            for (int i = 0; i < left.Length; i++)
            {
                product += left[i] * right[i];
            }

            for (int k = 0; k < rank; k++)
            {
                squareA += left[k * rank + k];
                squareB += right[k * rank + k];
            }

            // What rounding makes of a product that is nothing may be a little below it.
            all.Add(new AdapterNorms(key.Module, rows, columns, rank, scaling, Math.Sqrt(squareA), Math.Sqrt(squareB), Math.Abs(scaling) * Math.Sqrt(product < 0 ? 0 : product)));
        }

        return all;
    }

    /// <summary>The number of the block that a module belongs to; null where it is in none.</summary>
    public static int? LayerOf(string module)
    {
        string[] parts = module.Split('.');
        int at = Array.IndexOf(parts, "layers");
        return at >= 0 && at + 1 < parts.Length && int.TryParse(parts[at + 1], System.Globalization.NumberStyles.None, System.Globalization.CultureInfo.InvariantCulture, out int layer) ? layer : null;
    }

    /// <summary>(rank, rank): the products of the vectors with each other; vector k has its elements at k * vectorStride + i * elementStride.</summary>
    private static double[] Gram(float[] values, int rank, int length, int vectorStride, int elementStride)
    {
        double[] gram = new double[rank * rank];
        for (int first = 0; first < rank; first++)
        {
            for (int second = first; second < rank; second++)
            {
                double sum = 0;
                for (int i = 0; i < length; i++)
                {
                    sum += (double)values[first * vectorStride + i * elementStride] * values[second * vectorStride + i * elementStride];
                }

                gram[first * rank + second] = gram[second * rank + first] = sum;
            }
        }

        return gram;
    }
}
