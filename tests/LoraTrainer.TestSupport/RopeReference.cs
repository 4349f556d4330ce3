namespace LoraTrainer.TestSupport;

/// <summary>The rotary embedding in double precision.</summary>
public static class RopeReference
{
    /// <summary>The turned heads, and the sum of the magnitudes of what is added up in each element: 0 where the element passes through.</summary>
    /// <param name="input">(N, heads*Dh)</param>
    /// <param name="cosine">(N, half)</param>
    /// <param name="sine">(N, half)</param>
    /// <param name="heads">Heads in a row.</param>
    /// <param name="dh">Dh</param>
    /// <param name="half">Pairs that turn.</param>
    /// <param name="direction">1 forward, -1 backward.</param>
    public static (double[] Turned, double[] Size) Turn(double[] input, double[] cosine, double[] sine, int heads, int dh, int half, int direction)
    {
        double[] turned = [.. input], size = new double[input.Length];
        for (int i = 0; i < input.Length; i++)
        {
            int inHead = i % dh, row = i / (heads * dh);
            if (inHead < 2 * half)
            {
                int pair = inHead < half ? i + half : i - half, sign = inHead < half ? -direction : direction;
                double cos = cosine[row * half + inHead % half], sin = sine[row * half + inHead % half];
                turned[i] = input[i] * cos + sign * input[pair] * sin;
                size[i] = Math.Abs(input[i] * cos) + Math.Abs(input[pair] * sin);
            }
        }

        return (turned, size);
    }
}
