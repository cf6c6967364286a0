#include "mac.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>

struct tr_mac {
    EVP_MAC *algorithm;
    EVP_MAC_CTX *context;
};

struct tr_mac *tr_mac_new(void)
{
    struct tr_mac *one = calloc(1, sizeof *one);

    if (!one)
        return NULL;
    one->algorithm = EVP_MAC_fetch(NULL, "BLAKE2SMAC", NULL);
    one->context = one->algorithm ? EVP_MAC_CTX_new(one->algorithm) : NULL;
    if (one->context)
        return one;
    tr_mac_free(one);
    return NULL;
}

void tr_mac_free(struct tr_mac *one)
{
    if (!one)
        return;
    EVP_MAC_CTX_free(one->context);
    EVP_MAC_free(one->algorithm);
    free(one);
}

bool tr_mac_write(struct tr_mac *one, uint8_t mac[TR_MAC_SIZE], const uint8_t key[TR_MAC_KEY_SIZE], const char person[TR_PERSON_SIZE],
                  const struct tr_part *parts, size_t count)
{
    size_t size = TR_MAC_SIZE;
    /* The library only reads the personalisation. */
    OSSL_PARAM params[] = {OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size),
                           OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_CUSTOM, (void *)(uintptr_t)person, TR_PERSON_SIZE),
                           OSSL_PARAM_construct_end()};

    if (!EVP_MAC_init(one->context, key, TR_MAC_KEY_SIZE, params))
        return false;
    for (size_t i = 0; i < count; i++)
        if (!EVP_MAC_update(one->context, parts[i].data, parts[i].size))
            return false;
    return EVP_MAC_final(one->context, mac, &size, TR_MAC_SIZE) && size == TR_MAC_SIZE;
}

bool tr_mac_is_right(struct tr_mac *one, const uint8_t mac[TR_MAC_SIZE], const uint8_t key[TR_MAC_KEY_SIZE],
                     const char person[TR_PERSON_SIZE], const struct tr_part *parts, size_t count)
{
    uint8_t expected[TR_MAC_SIZE];

    return tr_mac_write(one, expected, key, person, parts, count) && CRYPTO_memcmp(expected, mac, TR_MAC_SIZE) == 0;
}
