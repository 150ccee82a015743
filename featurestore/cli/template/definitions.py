"""The features of this shop. `featurestore plan` shows what would change, `featurestore apply` publishes it."""

from featurestore import Entity, FeatureService, Source, agg, col, feature, feature_view

# Whom the features are about: the columns of the events that name one.
Customer = Entity("customer", keys={"customer_id": str}, description="Somebody with an account.")

# Where the events come from: a topic, and the contract that they keep (schemas/shop.orders/v1.avsc).
Orders = Source(
    "orders",
    topic="shop.orders",
    contract="shop.orders/v1",
    event_time="ordered_at",
    key=["customer_id"],  # the message key of the topic; leave it out where the messages have none
    owner="shop@example.com",
)


# `freshness` is a promise: answers say `late_pipeline` where a worker is further behind than this.
@feature_view(entity=Customer, source=Orders, version=1, owner="shop@example.com", freshness="30s")
class CustomerOrders:
    """What a customer has bought lately."""

    orders_1h = agg.count(window="1h")
    orders_7d = agg.count(window="7d")
    spent_7d = agg.sum(col("amount"), window="7d", default=0.0)
    refunded_7d = agg.count(where=col("refunded"), window="7d")
    # A derived feature: null where there were no orders, since nothing divided by nothing is no share.
    refunded_share_7d = feature("refunded_7d") / feature("orders_7d")
    # Without a window: over the whole history.
    last_category = agg.last(col("category"))


# What an inference service asks for, under one name. `customer_profile` alone means `customer_profile@prod`.
customer_profile = FeatureService("customer_profile", views=[CustomerOrders], owner="shop@example.com")

# Changing what a published view computes needs a new `version=`: the old one keeps its meaning for whoever uses it.
