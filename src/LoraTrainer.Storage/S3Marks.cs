using Amazon.S3;
using Amazon.S3.Model;

namespace LoraTrainer.Storage;

/// <summary>What is stored beside the content of one put: its SHA-256, which every reader checks, and a name of the put, by which a writer that lost the answer knows its own work.</summary>
internal sealed record S3Marks(string Sha256, string Put)
{
    private const string Sha256Name = "sha256";
    private const string PutName = "put";

    /// <summary>An entity tag without the quotes that HTTP puts around it.</summary>
    public static string Bare(string? tag) => (tag ?? string.Empty).Trim('"');

    /// <summary>The SHA-256 that was stored with the content; null for objects of others.</summary>
    public static string? Sha256Of(MetadataCollection metadata) => metadata[Sha256Name] is { Length: 64 } hash ? hash : null;

    public bool Are(MetadataCollection metadata) => metadata[PutName] == Put && metadata[Sha256Name] == Sha256;

    public PutObjectRequest Mark(PutObjectRequest request, S3Location location)
    {
        request.UseChunkEncoding = location.ChunkEncoding;
        request.ContentType = "application/octet-stream";
        Mark(request.Metadata);
        if (location.Encryption is { } encryption)
        {
            request.ServerSideEncryptionMethod = new ServerSideEncryptionMethod(encryption);
            request.ServerSideEncryptionKeyManagementServiceKeyId = location.KmsKey;
        }

        if (location.StorageClass is { } storageClass)
        {
            request.StorageClass = new S3StorageClass(storageClass);
        }

        return request;
    }

    public InitiateMultipartUploadRequest Mark(InitiateMultipartUploadRequest request, S3Location location)
    {
        request.ContentType = "application/octet-stream";
        Mark(request.Metadata);
        if (location.Encryption is { } encryption)
        {
            request.ServerSideEncryptionMethod = new ServerSideEncryptionMethod(encryption);
            request.ServerSideEncryptionKeyManagementServiceKeyId = location.KmsKey;
        }

        if (location.StorageClass is { } storageClass)
        {
            request.StorageClass = new S3StorageClass(storageClass);
        }

        return request;
    }

    private void Mark(MetadataCollection metadata)
    {
        metadata[Sha256Name] = Sha256;
        metadata[PutName] = Put;
    }
}
