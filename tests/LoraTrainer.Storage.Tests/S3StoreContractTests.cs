using System.Runtime.CompilerServices;
using Amazon.S3;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Storage.Tests;

/// <summary>The tests that share the real S3 server; one after the other.</summary>
[CollectionDefinition(Name)]
public sealed class S3Tests : ICollectionFixture<S3Server>, ICollectionFixture<S3FaultTable>
{
    public const string Name = "S3";

    [ModuleInitializer]
    internal static void WriteProfiles() => S3Profiles.Write();
}

[Collection(S3Tests.Name)]
[Trait("Category", "S3")]
public sealed class S3StoreContractTests : ObjectStoreContract
{
    private readonly S3Server server;
    private readonly string prefix = $"contract/{Guid.NewGuid():N}";

    public S3StoreContractTests(S3Server server)
    {
        this.server = server;
        server.Require(ownServer: false);
    }

    protected override IObjectStore Open() => ObjectStore.Open(server.Uri(prefix, "&part_mib=5"));

    protected override async Task LeaveUnfinished(IObjectStore store, string key)
    {
        using AmazonS3Client client = server.Client();
        await client.InitiateMultipartUploadAsync(S3Server.Bucket, $"{prefix}/{key}", Cancellation);
    }
}
